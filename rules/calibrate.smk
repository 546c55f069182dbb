"""Calibration on the first test images: tau and omega (paper, IV-c and App. D-e), DkNN-Atk's slope or guides.

needs: prepared data, weights, indexes; for omega, the layers' tau
makes: results/<run>/calibration/<dataset>/<model>/<calibration>.json
"""

CALIBRATION = Made(RUN.calibration("{dataset}", "{model}", "{calibration}"))


rule calibrate:
    input:
        CALIBRATION.needs,
    output:
        CALIBRATION.pattern,
    log:
        CALIBRATION.log,
    benchmark:
        CALIBRATION.benchmark
    wildcard_constraints:
        calibration=PLAN.names("calibrate"),
    conda:
        "../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * CALIBRATION.task(wildcards).memory,
        runtime=120,
        gpu=GPU,
    params:
        job=CALIBRATION.job,
        code=CALIBRATION.code,
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask calibrate --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"
