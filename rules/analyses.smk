"""Measurements beside the attack cells.

needs: prepared data, weights, indexes; predictions of cells (failures, example); calibrations and blocks
makes: results/<run>/blocks/<dataset>/<model>/*.safetensors; cells/<dataset>/<model>/{failures,timing}-*.json and
cells/simulated/none/*.json, of the form of a cell; examples/*.{json,npz}
"""


rule blocks:
    input:
        prepared(DATA, "{dataset}") / "facts.json",
        lambda wildcards: RUN.index(wildcards.dataset, wildcards.model, blocks(wildcards).layer),
    output:
        RUN.blocks("{dataset}", "{model}", "{blocks}"),
    log:
        log_of(RUN.blocks("{dataset}", "{model}", "{blocks}")),
    benchmark:
        benchmark_of(RUN.blocks("{dataset}", "{model}", "{blocks}"))
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=GPU,
    params:
        job=lambda wildcards: document(blocks(wildcards)),
        code=code("blocks"),
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask blocks --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"


rule failures:
    input:
        lambda wildcards: [measured(failures(wildcards).cell), *needs(failures(wildcards).cell)],
    output:
        RUN.cell("{dataset}", "{model}", "{failures}"),
    log:
        log_of(RUN.cell("{dataset}", "{model}", "{failures}")),
    benchmark:
        benchmark_of(RUN.cell("{dataset}", "{model}", "{failures}"))
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=60,
        gpu=GPU,
    params:
        job=lambda wildcards: document(failures(wildcards)),
        code=code("failures"),
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask failures --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"


rule timing:
    input:
        lambda wildcards: sorted({path for cell in timing(wildcards).cells for path in needs(cell)}),
    output:
        RUN.cell("{dataset}", "{model}", "{timing}"),
    log:
        log_of(RUN.cell("{dataset}", "{model}", "{timing}")),
    benchmark:
        benchmark_of(RUN.cell("{dataset}", "{model}", "{timing}"))
    conda:
        "../environment.yml"
    # All cores: nothing else runs beside it on a local machine.
    threads: workflow.resource_settings.cores or 1
    resources:
        mem_mb=8000,
        runtime=240,
        gpu=GPU,
    params:
        job=lambda wildcards: document(timing(wildcards)),
        code=lambda wildcards: code("timing", timing(wildcards)),
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask timing --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"


rule cost:
    input:
        lambda wildcards: trained(wildcards.dataset, cost(wildcards).model, cost(wildcards).base),
    output:
        RUN.cell("{dataset}", "{model}", "{cost}"),
    log:
        log_of(RUN.cell("{dataset}", "{model}", "{cost}")),
    benchmark:
        benchmark_of(RUN.cell("{dataset}", "{model}", "{cost}"))
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        job=lambda wildcards: document(cost(wildcards)),
        code=code("cost"),
        run=RUN.root,
    shell:
        "python -m ask cost --job {params.job:q} --run {params.run:q} --code {params.code} > {log:q} 2>&1"


rule study:
    output:
        RUN.cell("simulated", "none", "{study}"),
    log:
        log_of(RUN.cell("simulated", "none", "{study}")),
    benchmark:
        benchmark_of(RUN.cell("simulated", "none", "{study}"))
    # A single long job: not the last one.
    priority: 5
    conda:
        "../environment.yml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=lambda wildcards: document(PLAN.studies["simulated", "none", wildcards.study]),
        code=code("study"),
        run=RUN.root,
    shell:
        "python -m ask study --job {params.job:q} --run {params.run:q} --code {params.code} > {log:q} 2>&1"


rule example:
    input:
        example_needs,
    output:
        shown=RUN.example("{example}"),
        pictures=RUN.example("{example}").with_suffix(".npz"),
    log:
        log_of(RUN.example("{example}")),
    benchmark:
        benchmark_of(RUN.example("{example}"))
    conda:
        "../environment.yml"
    resources:
        mem_mb=8000,
        runtime=120,
        gpu=GPU,
    params:
        job=lambda wildcards: document(PLAN.examples[wildcards.example]),
        code=lambda wildcards: code("example", PLAN.examples[wildcards.example]),
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask example --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"


rule plane:
    output:
        shown=RUN.example("{plane}"),
        drawn=RUN.example("{plane}").with_suffix(".npz"),
    log:
        log_of(RUN.example("{plane}")),
    benchmark:
        benchmark_of(RUN.example("{plane}"))
    # A single long job: not the last one.
    priority: 5
    conda:
        "../environment.yml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=lambda wildcards: document(PLAN.planes[wildcards.plane]),
        code=code("plane"),
        run=RUN.root,
    shell:
        "python -m ask plane --job {params.job:q} --run {params.run:q} --code {params.code} > {log:q} 2>&1"
