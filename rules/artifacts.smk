"""Tables, figures and the report.

needs: the cells that an artifact shows
makes: results/<run>/tables/*.{csv,md,tex,html}, figures/*.{csv,svg,png,pdf}, report/index.html
"""


def cells_of(name):
    return [RUN.cell(*key) for key in PLAN.cells_of(name)]


def formats(path, *suffixes):
    return [path, *(path.with_suffix(suffix) for suffix in suffixes)]


TABLE_FORMATS = (".md", ".tex", ".html")
FIGURE_FORMATS = (".svg", ".png", ".pdf")


rule table:
    input:
        lambda wildcards: cells_of(wildcards.table),
    output:
        formats(RUN.table("{table}"), *TABLE_FORMATS),
    params:
        job=lambda wildcards: document(PLAN.artifacts[wildcards.table]),
        code=code("table"),
        run=RUN.root,
    log:
        log_of(RUN.table("{table}")),
    benchmark:
        benchmark_of(RUN.table("{table}"))
    conda:
        "../environment.yml"
    localrule: True
    resources:
        mem_mb=500,
        runtime=5,
    shell:
        "python -m ask table --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


rule figure:
    input:
        lambda wildcards: cells_of(wildcards.figure),
    output:
        formats(RUN.figure("{figure}"), *FIGURE_FORMATS),
    params:
        job=lambda wildcards: document(PLAN.artifacts[wildcards.figure]),
        code=code("figure"),
        run=RUN.root,
    log:
        log_of(RUN.figure("{figure}")),
    benchmark:
        benchmark_of(RUN.figure("{figure}"))
    conda:
        "../environment.yml"
    localrule: True
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "python -m ask figure --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


rule report:
    input:
        [
            formats(RUN.table(name), *TABLE_FORMATS)
            if job["kind"] == "table"
            else formats(RUN.figure(name), *FIGURE_FORMATS)
            for name, job in PLAN.artifacts.items()
        ],
        [RUN.cell(*key) for key in PLAN.cells],
    output:
        RUN.report,
    params:
        job=document(report_job(CONFIG, PLAN)),
        code=code("report"),
        run=RUN.root,
    log:
        log_of(RUN.report),
    benchmark:
        benchmark_of(RUN.report)
    conda:
        "../environment.yml"
    localrule: True
    resources:
        mem_mb=1000,
        runtime=5,
    shell:
        "python -m ask report --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"
