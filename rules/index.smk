"""Feature index.

needs: prepared data, weights
makes: results/<run>/index/<dataset>/<model>/<layer>.npy, the features of all training images
"""


rule index:
    input:
        prepared(DATA, "{dataset}") / "facts.json",
        weights,
    output:
        RUN.index("{dataset}", "{model}", "{layer}"),
    log:
        log_of(RUN.index("{dataset}", "{model}", "{layer}")),
    benchmark:
        benchmark_of(RUN.index("{dataset}", "{model}", "{layer}"))
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=GPU,
    params:
        job=lambda wildcards: document(PLAN.indexes[wildcards.dataset, wildcards.model, wildcards.layer]),
        code=code("index"),
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask index --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"
