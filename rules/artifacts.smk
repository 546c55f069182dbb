"""Tables, figures and the report.

needs: the cells that an artifact shows
makes: results/<run>/tables/*.{csv,md,tex,html}, figures/*.{csv,svg,png,pdf}, report/index.html
"""


rule table:
    input:
        lambda wildcards: cells_of(wildcards.table),
    output:
        formats(RUN.table("{table}"), *TABLE_FORMATS),
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
        code=code("table"),
        run=RUN.root,
    shell:
        "python -m ask table --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


rule figure:
    input:
        lambda wildcards: cells_of(wildcards.figure),
    output:
        formats(RUN.figure("{figure}"), *FIGURE_FORMATS),
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
        code=code("figure"),
        run=RUN.root,
    shell:
        "python -m ask figure --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


rule report:
    input:
        [
            (
                formats(RUN.table(name), *TABLE_FORMATS)
                if job["kind"] == "table"
                else formats(RUN.figure(name), *FIGURE_FORMATS)
            )
            for name, job in PLAN.artifacts.items()
        ],
        [RUN.cell(*key) for key in PLAN.cells],
    output:
        RUN.report,
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
