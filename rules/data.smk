"""Data sets.

needs: the publishers' files, from their URLs or a mirror; nothing for embedded or a user's own data
makes: data/prepared/<dataset>-<key>/{train,test}_{images,labels}.npy and facts.json
"""

MANIFEST = Made(raw(DATA, "{source}") / "manifest.json")
FACTS = Made(DATA / "prepared/{prepared}/facts.json")


rule download:
    output:
        MANIFEST.pattern,
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
        job=MANIFEST.job,
        code=MANIFEST.code,
        data=DATA,
    shell:
        "python -m ask download --job {params.job:q} --data {params.data:q} > {log:q} 2>&1"


rule prepare:
    input:
        FACTS.needs,
    output:
        FACTS.pattern,
        [FACTS.pattern.with_name(name) for name in STEPS["prepare"].also],
    log:
        DATA / "logs/prepare-{prepared}.log",
    benchmark:
        DATA / "logs/prepare-{prepared}.tsv"
    # All else waits for data; with two threads it would have to wait for two idle cores.
    priority: 20
    conda:
        "../environment.yml"
    threads: 2
    resources:
        mem_mb=4000,
        runtime=60,
    params:
        job=FACTS.job,
        code=FACTS.code,
        data=DATA,
    shell:
        "python -m ask prepare --job {params.job:q} --data {params.data:q} > {log:q} 2>&1"
