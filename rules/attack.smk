"""Attack cells: one attack on one model over all trials, seen by every DkNN that an artifact asks of it.

needs: prepared data, weights, indexes, calibrations, AdvKnn's blocks
makes: results/<run>/cells/<dataset>/<model>/<cell>.json, and the predictions beside it (.npz);
results/<run>/blocks/<dataset>/<model>/*.safetensors, which AdvKnn's cells read
"""

CELL = Made(RUN.cell("{dataset}", "{model}", "{cell}"))


rule attack:
    input:
        CELL.needs,
    output:
        measured=CELL.pattern,
        predictions=CELL.pattern.with_suffix(".npz"),
    log:
        CELL.log,
    benchmark:
        CELL.benchmark
    wildcard_constraints:
        cell=PLAN.names("attack"),
    conda:
        "../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * CELL.task(wildcards).memory,
        runtime=12 * 60,
        gpu=GPU,
    params:
        job=CELL.job,
        code=CELL.code,
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask attack --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"


BLOCKS = Made(RUN.blocks("{dataset}", "{model}", "{blocks}"))


rule blocks:
    input:
        BLOCKS.needs,
    output:
        BLOCKS.pattern,
    log:
        BLOCKS.log,
    benchmark:
        BLOCKS.benchmark
    wildcard_constraints:
        blocks=PLAN.names("blocks"),
    conda:
        "../environment.yml"
    resources:
        mem_mb=lambda wildcards, attempt: attempt * 8000,
        runtime=120,
        gpu=GPU,
    params:
        job=BLOCKS.job,
        code=BLOCKS.code,
        run=RUN.root,
        data=DATA,
        device=CONFIG.device,
    shell:
        "python -m ask blocks --job {params.job:q} --run {params.run:q} --data {params.data:q}"
        " --device {params.device} --code {params.code} > {log:q} 2>&1"
