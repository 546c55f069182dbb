"""Training.

needs: prepared data
makes: results/<run>/models/<dataset>/<model>/{weights,last}.safetensors, history.csv, config.yaml
An interrupted training continues from its own checkpoint in results/<run>/scratch.
"""


rule train:
    input:
        prepared(DATA, "{dataset}") / "facts.json",
    output:
        weights=RUN.model("{dataset}", "{model}") / "weights.safetensors",
        last=RUN.model("{dataset}", "{model}") / "last.safetensors",
        history=RUN.model("{dataset}", "{model}") / "history.csv",
        config=RUN.model("{dataset}", "{model}") / "config.yaml",
    log:
        log_of(RUN.model("{dataset}", "{model}") / "train"),
    benchmark:
        benchmark_of(RUN.model("{dataset}", "{model}") / "train")
    # Most waits for it: it starts before anything that could go on beside it.
    priority: 10
    conda:
        "../environment.yml"
    threads: CONFIG.train_threads
    resources:
        mem_mb=8000,
        runtime=24 * 60,
        gpu=GPU,
    params:
        job=lambda wildcards: document(PLAN.models[wildcards.dataset, wildcards.model]),
        code=lambda wildcards: code("train", PLAN.models[wildcards.dataset, wildcards.model]),
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
        graphs="--cuda-graphs" if CONFIG.cuda_graphs else "",
    shell:
        "python -m ask train --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} {params.graphs} --code {params.code} > {log:q} 2>&1"
