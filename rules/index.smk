"""Feature index.

needs: prepared data, weights
makes: results/<run>/index/<dataset>/<model>/<layer>.npy, the features of all training images
"""

INDEX = Made(RUN.index("{dataset}", "{model}", "{layer}"))


rule index:
    input:
        INDEX.needs,
    output:
        INDEX.pattern,
    log:
        INDEX.log,
    benchmark:
        INDEX.benchmark
    wildcard_constraints:
        layer=PLAN.names("index"),
    conda:
        "../environment.yml"
    resources:
        mem_mb=4000,
        runtime=60,
        gpu=GPU,
    params:
        job=INDEX.job,
        code=INDEX.code,
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask index --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"
