"""Training.

needs: prepared data
makes: results/<run>/models/<dataset>/<model>/{weights,last}.safetensors, history.csv, config.yaml;
       of a network that was trained elsewhere, weights.safetensors and config.yaml
An interrupted training continues from its own checkpoint in results/<run>/scratch.
"""

MODEL = Made(RUN.weights("{dataset}", "{model}"))


rule adopt:
    input:
        MODEL.needs,
    output:
        weights=MODEL.pattern,
        config=MODEL.pattern.with_name("config.yaml"),
    log:
        MODEL.log,
    benchmark:
        MODEL.benchmark
    wildcard_constraints:
        model=PLAN.folders(1, "adopt"),
    conda:
        "../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 8000,
        runtime=60,
    params:
        job=MODEL.job,
        code=MODEL.code,
        run=RUN.root,
        data=DATA,
    shell:
        "python -m ask adopt --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device cpu --code {params.code} > {log:q} 2>&1"


rule train:
    input:
        MODEL.needs,
    output:
        weights=MODEL.pattern,
        last=MODEL.pattern.with_name("last.safetensors"),
        history=MODEL.pattern.with_name("history.csv"),
        config=MODEL.pattern.with_name("config.yaml"),
    log:
        MODEL.log,
    benchmark:
        MODEL.benchmark
    wildcard_constraints:
        model=PLAN.folders(1, "train"),
    # Most waits for it: it starts before anything that could go on beside it.
    priority: 10
    conda:
        "../environment.yml"
    threads: CONFIG.train_threads
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 8000,
        runtime=24 * 60,
        gpu=GPU,
    params:
        job=MODEL.job,
        code=MODEL.code,
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
        # A function of threads: those that change speed alone are not compared.
        graphs=lambda wildcards, threads: "--cuda-graphs" if CONFIG.cuda_graphs else "",
    shell:
        "python -m ask train --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} {params.graphs} --code {params.code} > {log:q} 2>&1"
