"""Data sets.

needs: the publishers' files, from their URLs or a mirror; nothing for embedded or a user's own data
makes: data/prepared/<dataset>/{train,test}_{images,labels}.npy and facts.json
"""


rule download:
    output:
        raw(DATA, "{source}") / "manifest.json",
    log:
        DATA / "logs/download-{source}.log",
    benchmark:
        DATA / "logs/download-{source}.tsv"
    retries: 2
    # Compute nodes often have no internet.
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=2000,
        runtime=120,
    params:
        job=lambda wildcards: document({"source": wildcards.source}),
        code=code("download"),
        data=DATA,
    shell:
        "python -m ask download --job {params.job:q} --data {params.data:q} > {log:q} 2>&1"


rule prepare:
    input:
        source_of,
    output:
        expand(prepared(DATA, "{{dataset}}") / "{split}_{kind}.npy", split=["train", "test"], kind=["images", "labels"]),
        prepared(DATA, "{dataset}") / "facts.json",
    log:
        DATA / "logs/prepare-{dataset}.log",
    benchmark:
        DATA / "logs/prepare-{dataset}.tsv"
    # All else waits for data; with two threads it would have to wait for two idle cores.
    priority: 20
    conda:
        "../environment.yml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        job=lambda wildcards: document(PLAN.data[wildcards.dataset]),
        code=code("prepare"),
        data=DATA,
    shell:
        "python -m ask prepare --job {params.job:q} --data {params.data:q} --name {wildcards.dataset} > {log:q} 2>&1"
