"""Attack cells: one attack on one model over all trials, seen by every classifier that an artifact asks of it.

needs: prepared data, weights, indexes, calibrations, AdvKnn's blocks
makes: results/<run>/cells/<dataset>/<model>/<cell>.json, and the predictions beside it (.npz)
"""


rule attack:
    input:
        lambda wildcards: needs(cell(wildcards)),
    output:
        measured=RUN.cell("{dataset}", "{model}", "{cell}"),
        predictions=RUN.cell("{dataset}", "{model}", "{cell}").with_suffix(".npz"),
    log:
        log_of(RUN.cell("{dataset}", "{model}", "{cell}")),
    benchmark:
        benchmark_of(RUN.cell("{dataset}", "{model}", "{cell}"))
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=12 * 60,
        gpu=GPU,
    params:
        job=lambda wildcards: document(cell(wildcards)),
        code=lambda wildcards: code("attack", cell(wildcards)),
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask attack --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"
