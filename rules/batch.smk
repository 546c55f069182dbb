"""Batches: full cluster jobs, each of which makes many short ones of the other rules (see ask/plan/batches.py).

needs: what its members read and do not make; of members of other batches, those batches' manifests
makes: results/<run>/scratch/batches/<batch>.done, a manifest that all of it is made

A profile chooses batches by `resources: batches: 32`: about so many, of which so many run at once. Tables, figures and
the report then wait for manifests in place of cells; long trainings and data keep jobs of their own. Without it (and
with a forced job, or a cell as target), there are none.

Why a manifest, and not each cell as an output of its batch (rules made in a loop)? Snakemake deletes a job's outputs
when it fails and before it runs again: one bad cell, or a time limit, would take all finished ones along. And what a
batch declared would be recorded as its own, with its settings: another number of batches, or a local run, would measure
everything again. The Snakemake inside the batch's job declares and records each member as a local run does.
"""


rule batch:
    input:
        lambda wildcards: ASKED.batches.needs(wildcards.batch),
    output:
        RUN.root / "scratch/batches" / "{batch}.done",
    log:
        RUN.root / "logs/batches/{batch}.log",
    benchmark:
        RUN.root / "benchmarks/batches/{batch}.tsv"
    wildcard_constraints:
        batch="[0-9a-f]+-[0-9a-f]+-[0-9]+",
    conda:
        "../environment.yml"
    threads: lambda wildcards: CONFIG.train_threads if ASKED.batches.read(wildcards.batch).trains else 1
    resources:
        # On a GPU its members run one by one. What was killed may take more.
        mem_mb=lambda wildcards, threads, attempt: (
            attempt * (8000 if GPU else ASKED.batches.memory(wildcards.batch, threads))
        ),
        runtime=lambda wildcards, attempt: min(24 * 60, attempt * ASKED.batches.read(wildcards.batch).minutes),
        gpu=lambda wildcards: GPU * ASKED.batches.read(wildcards.batch).gpu,
        batches=1,
    params:
        members=lambda wildcards: ASKED.batches.summary(wildcards.batch),
        spec=lambda wildcards: RUN.root / "scratch/batches" / f"{wildcards.batch}.json",
    message:
        "Batch {wildcards.batch}, {params.members}"
    shell:
        "python -m ask batch {params.spec:q} --out {output:q} --cores {threads} > {log:q} 2>&1"
