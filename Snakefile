# Every table and figure of the paper from one configuration. `snakemake -n` shows what would run and why.
#   snakemake                                      the paper run (config/config.yaml)
#   snakemake --configfile config/demo.yaml        the demo, on embedded data
from pathlib import Path

from snakemake.utils import min_version

min_version("9.25")


configfile: "config/config.yaml" if Path("config/config.yaml").is_file() else f"{workflow.basedir}/config/config.yaml"


include: "rules/common.smk"
include: "rules/batch.smk"
include: "rules/data.smk"
include: "rules/train.smk"
include: "rules/index.smk"
include: "rules/calibrate.smk"
include: "rules/attack.smk"
include: "rules/analyses.smk"
include: "rules/artifacts.smk"


# Jobs of this machine fork from one process that has torch loaded; see ask/worker.py. ASK_WORKER= (empty) turns it off.
onstart:
    # Snakemake writes the interpreter into a cluster's jobs as it is, unquoted.
    if not workflow.local_exec and shlex.quote(sys.executable) != sys.executable:
        raise WorkflowError(
            f"No job of a cluster could start {sys.executable!r}: put .venv where no path has a space."
        )
    start_worker()
    if workflow.local_exec:
        watch_progress(
            PLAN, [Path(job.output[0]) for job in workflow.dag.needrun_jobs() if job.output], workflow.cores
        )
        # The limit of 100 job starts a second makes the scheduler look again one second after each look: after
        # some hundred jobs it does little else, and takes a core (https://github.com/snakemake/snakemake/pull/3744).
        workflow.scheduler.job_rate_limiter = None
    remember(
        {task.modules for task in PLAN.tasks.values()}
    )  # so that `python -m ask why` can name what changed since
    # Trials of cells that are to hold more or fewer, before their outputs are deleted; and none that records hold.
    tend((task.output, task.document) for task in PLAN.of("attack", "blocks"))
    share(RUN.root, ((task.after, task.document) for task in PLAN.of("attack") if task.after))


onsuccess:
    tend((task.output, task.document) for task in PLAN.of("attack", "blocks"))


rule all:
    default_target: True
    input:
        RUN.report,
        [PLAN.shown(name) for name in PLAN.artifacts],
    localrule: True


# One model's part of a run, as a target: all that is measured on it. For several allocations side by side (docs/cluster.md).
rule model:
    input:
        lambda wildcards: ASKED.batches.instead(PLAN.of_model(wildcards.dataset, wildcards.model)),
    output:
        touch(RUN.root / "scratch/{dataset}/{model}.done"),
    localrule: True
