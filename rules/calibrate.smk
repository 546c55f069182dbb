"""Calibration of tau and omega on the first test images (paper, IV-c and App. D-e).

needs: prepared data, weights, indexes; for omega, the layers' tau
makes: results/<run>/calibration/<dataset>/<model>/<calibration>.json
"""


rule calibrate:
    input:
        lambda wildcards: needs(calibration(wildcards)),
    output:
        RUN.calibration("{dataset}", "{model}", "{calibration}"),
    log:
        log_of(RUN.calibration("{dataset}", "{model}", "{calibration}")),
    benchmark:
        benchmark_of(RUN.calibration("{dataset}", "{model}", "{calibration}"))
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=GPU,
    params:
        job=lambda wildcards: document(calibration(wildcards)),
        code=lambda wildcards: code("calibrate", calibration(wildcards)),
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask calibrate --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"
