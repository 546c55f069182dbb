"""Tables, figures, the claims ledger and the report.

needs: the cells that an artifact shows, or the example that it draws
makes: results/<run>/tables/*.{csv,json,md,tex,html}, figures/*.{csv,json,svg,png,pdf}, claims.csv, report/*
"""

TABLE = Made(RUN.table("{table}"))


rule table:
    input:
        TABLE.needs,
    output:
        [TABLE.pattern.with_suffix(suffix) for suffix in (".csv", ".json", ".md", ".tex")],
        in_report(TABLE, ".html"),
    log:
        TABLE.log,
    benchmark:
        TABLE.benchmark
    wildcard_constraints:
        table=PLAN.names("table"),
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        job=TABLE.job,
        caption=TABLE.shows("caption"),
        code=TABLE.code,
        run=RUN.root,
    shell:
        "python -m ask table --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


FIGURE = Made(RUN.figure("{figure}"))


rule figure:
    input:
        FIGURE.needs,
    output:
        [FIGURE.pattern.with_suffix(suffix) for suffix in (".csv", ".json", ".png", ".pdf")],
        in_report(FIGURE, ".svg"),
    log:
        FIGURE.log,
    benchmark:
        FIGURE.benchmark
    wildcard_constraints:
        figure=PLAN.names("figure"),
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        job=FIGURE.job,
        caption=FIGURE.shows("caption"),
        code=FIGURE.code,
        run=RUN.root,
    shell:
        "python -m ask figure --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


DRAWING = Made(RUN.figure("{drawing}"))


rule drawing:
    input:
        DRAWING.needs,
    output:
        [DRAWING.pattern.with_suffix(suffix) for suffix in (".csv", ".png", ".pdf")],
        in_report(DRAWING, ".svg"),
    log:
        DRAWING.log,
    benchmark:
        DRAWING.benchmark
    wildcard_constraints:
        drawing=PLAN.names("pictures", "boundaries"),
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        job=DRAWING.job,
        caption=DRAWING.shows("caption"),
        code=DRAWING.code,
        run=RUN.root,
        step=DRAWING.step,
    shell:
        "python -m ask {params.step} --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


CLAIMS, REPORT = Made(RUN.claims), Made(RUN.report)


rule claims:
    input:
        CLAIMS.needs,
    output:
        CLAIMS.pattern,
    log:
        CLAIMS.log,
    benchmark:
        CLAIMS.benchmark
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=500,
        runtime=5,
    params:
        job=CLAIMS.job,
        code=CLAIMS.code,
        run=RUN.root,
    shell:
        "python -m ask claims --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"


rule report:
    input:
        REPORT.needs,
    output:
        REPORT.pattern,
        [REPORT.pattern.with_name(f"{name}.html") for name in PLAN.artifacts],
        [REPORT.pattern.with_name(name) for name in ("style.css", "script.js")],
    log:
        REPORT.log,
    benchmark:
        REPORT.benchmark
    localrule: True
    conda:
        "../environment.yml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        job=REPORT.job,
        code=REPORT.code,
        run=RUN.root,
    shell:
        "python -m ask report --job {params.job:q} --run {params.run:q} > {log:q} 2>&1"
