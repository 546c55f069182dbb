"""Tables, figures, the claims ledger and the report.

needs: the cells that an artifact shows
makes: results/<run>/tables/*.{csv,json,md,tex,html}, figures/*.{csv,json,svg,png,pdf}, claims.csv, report/*
"""


rule table:
    input:
        lambda wildcards: cells_of(wildcards.table),
    output:
        formats(RUN.table("{table}"), *TABLE_FORMATS[:-1]),
        in_report(RUN.table("{table}").with_suffix(".html"), "table"),
    log:
        log_of(RUN.table("{table}")),
    benchmark:
        benchmark_of(RUN.table("{table}"))
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        job=lambda wildcards: document(PLAN.artifacts[wildcards.table]),
        caption=lambda wildcards: PLAN.artifacts[wildcards.table]["caption"],
        code=code("table"),
        run=RUN.root,
    shell:
        "python -m ask table --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


rule figure:
    input:
        lambda wildcards: cells_of(wildcards.figure),
    output:
        formats(RUN.figure("{figure}"), ".json", *FIGURE_FORMATS[1:]),
        in_report(RUN.figure("{figure}").with_suffix(".svg"), "figure"),
    log:
        log_of(RUN.figure("{figure}")),
    benchmark:
        benchmark_of(RUN.figure("{figure}"))
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        job=lambda wildcards: document(PLAN.artifacts[wildcards.figure]),
        caption=lambda wildcards: PLAN.artifacts[wildcards.figure]["caption"],
        code=code("figure"),
        run=RUN.root,
    shell:
        "python -m ask figure --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


rule pictures:
    input:
        RUN.example("{pictures}"),
        RUN.example("{pictures}").with_suffix(".npz"),
    output:
        formats(RUN.figure("{pictures}"), *FIGURE_FORMATS[1:]),
        in_report(RUN.figure("{pictures}").with_suffix(".svg"), "pictures"),
    log:
        log_of(RUN.figure("{pictures}")),
    benchmark:
        benchmark_of(RUN.figure("{pictures}"))
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        job=lambda wildcards: document(PLAN.artifacts[wildcards.pictures]),
        caption=lambda wildcards: PLAN.artifacts[wildcards.pictures]["caption"],
        code=code("pictures"),
        run=RUN.root,
    shell:
        "python -m ask pictures --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


rule boundaries:
    input:
        RUN.example("{boundaries}"),
        RUN.example("{boundaries}").with_suffix(".npz"),
    output:
        formats(RUN.figure("{boundaries}"), *FIGURE_FORMATS[1:]),
        in_report(RUN.figure("{boundaries}").with_suffix(".svg"), "boundaries"),
    log:
        log_of(RUN.figure("{boundaries}")),
    benchmark:
        benchmark_of(RUN.figure("{boundaries}"))
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        job=lambda wildcards: document(PLAN.artifacts[wildcards.boundaries]),
        caption=lambda wildcards: PLAN.artifacts[wildcards.boundaries]["caption"],
        code=code("boundaries"),
        run=RUN.root,
    shell:
        "python -m ask boundaries --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


rule claims:
    input:
        [shows(name) for name in PLAN.artifacts],
        claims=HERE / "config/paper/claims.csv",
    output:
        RUN.claims,
    log:
        log_of(RUN.claims),
    benchmark:
        benchmark_of(RUN.claims)
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        job=document(claims_job(CONFIG, PLAN)),
        code=code("claims"),
        run=RUN.root,
    shell:
        "python -m ask claims --job {params.job:q} --claims {input.claims:q} --run {params.run:q} > {log:q} 2>&1"


rule report:
    input:
        [shows(name) for name in PLAN.artifacts],
        RUN.claims,
        [RUN.cell(*key) for key in PLAN.measurements],
    output:
        RUN.report,
        [RUN.report.with_name(f"{name}.html") for name in PLAN.artifacts],
        [RUN.report.with_name(name) for name in ("style.css", "script.js")],
    log:
        log_of(RUN.report),
    benchmark:
        benchmark_of(RUN.report)
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        job=document(report_job(CONFIG, PLAN)),
        code=code("report"),
        run=RUN.root,
    shell:
        "python -m ask report --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"
