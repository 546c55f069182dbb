"""Measurements beside the attack cells: each is one of the steps `failures`, `timing`, `cost`, `study`, `example`, `plane`.

needs: prepared data, weights, indexes; predictions of cells (failures, example); calibrations (timing, example)
makes: results/<run>/cells/<dataset>/<model>/<analysis>.json, of the form of a cell (failures: and .npz);
       examples/<example>.{json,npz}
"""

ANALYSIS = Made(RUN.cell("{dataset}", "{model}", "{analysis}"))


rule analyse:
    input:
        ANALYSIS.needs,
    output:
        ANALYSIS.pattern,
    log:
        ANALYSIS.log,
    benchmark:
        ANALYSIS.benchmark
    wildcard_constraints:
        analysis=PLAN.names("timing", "cost"),
    conda:
        "../environment.yml"
    # Timing takes all cores: nothing else runs beside it on a local machine.
    threads: lambda wildcards: (workflow.resource_settings.cores or 1) if ANALYSIS.step(wildcards) == "timing" else 1
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 8000,
        runtime=240,
        gpu=GPU,
    params:
        step=ANALYSIS.step,
        job=ANALYSIS.job,
        code=ANALYSIS.code,
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask {params.step} --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"


FAILED = Made(RUN.cell("{dataset}", "{model}", "{failed}"))


rule failures:
    input:
        FAILED.needs,
    output:
        described=FAILED.pattern,
        images=FAILED.pattern.with_suffix(".npz"),
    log:
        FAILED.log,
    benchmark:
        FAILED.benchmark
    wildcard_constraints:
        failed=PLAN.names("failures"),
    conda:
        "../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 8000,
        runtime=240,
        gpu=GPU,
    params:
        job=FAILED.job,
        code=FAILED.code,
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask failures --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"


STUDY = Made(RUN.cell("simulated", "none", "{study}"))


rule simulate:
    input:
        STUDY.needs,
    output:
        STUDY.pattern,
    log:
        STUDY.log,
    benchmark:
        STUDY.benchmark
    wildcard_constraints:
        study=PLAN.names("study"),
    # A single long job: not the last one.
    priority: 5
    conda:
        "../environment.yml"
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        job=STUDY.job,
        code=STUDY.code,
        run=RUN.root,
    shell:
        "python -m ask study --job {params.job:q} --run {params.run:q} --code {params.code} > {log:q} 2>&1"


EXAMPLE = Made(RUN.example("{example}"))


rule illustrate:
    input:
        EXAMPLE.needs,
    output:
        shown=EXAMPLE.pattern,
        pictures=EXAMPLE.pattern.with_suffix(".npz"),
    log:
        EXAMPLE.log,
    benchmark:
        EXAMPLE.benchmark
    wildcard_constraints:
        example=PLAN.names("example", "plane"),
    # Few and long: not the last ones.
    priority: 5
    conda:
        "../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 8000,
        runtime=120,
        gpu=GPU,
    params:
        step=EXAMPLE.step,
        job=EXAMPLE.job,
        code=EXAMPLE.code,
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask {params.step} --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"
