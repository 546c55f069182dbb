"""The plan of the run, made once from the configuration, and what all rules ask of it."""

import functools
import re
import shutil
import sys

sys.path.insert(0, workflow.basedir)

from ask.config.run import ConfigError, hand_on, load_artifacts, load_run, name_run
from ask.measure.journal import share, tend
from ask.paths import raw
from ask.plan.batches import Batches
from ask.plan.graph import required
from ask.plan.paper import Paper
from ask.plan.planner import plan_run
from ask.plan.predict import watch as watch_progress
from ask.plan.preflight import inspect
from ask.plan.why import adopt, remember
from ask.steps import STEPS
from ask.worker import start as start_worker
from ask.worker import use_checkout

HERE = Path(workflow.basedir)
use_checkout(str(HERE))

try:
    if workflow.overwrite_configfiles:
        name_run(workflow.config_settings.overwrite_config, " + ".join(map(str, workflow.overwrite_configfiles)))
    CONFIG = load_run(config)
    PLAN = plan_run(
        CONFIG,
        load_artifacts(HERE / "config/artifacts", CONFIG.artifacts),
        Paper.read(HERE / "config/paper"),
    )
    for remark in inspect(PLAN) if workflow.is_main_process else ():
        logger.warning(remark)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RUN = PLAN.run
if workflow.is_main_process:
    adopt(PLAN.tasks, RUN)
DATA = Path(CONFIG.data.root).expanduser()
hand_on(CONFIG)
# A GPU job asks for a GPU, so that a cluster grants one and the local scheduler keeps to the profile's cap.
GPU = int(CONFIG.device == "cuda" or (CONFIG.device == "auto" and shutil.which("nvidia-smi") is not None))


@functools.cache  # Snakemake knows what is asked of it only when it has read all rules
def batches():
    """What is left, cut into batches if the profile says so and jobs leave this machine (rules/batch.smk)."""
    asked, count = workflow.dag_settings, dict(workflow.global_resources.unwrapped_items()).get("batches", 0)
    chosen = asked.forceall or asked.forcerun or asked.forcetargets or asked.until or asked.omit_from
    if chosen or not (workflow.is_main_process and workflow.non_local_exec_or_dryrun):
        count = 0
    return Batches(PLAN, config, int(count), targets(), "GPU" if GPU else "CPU")


def targets():
    """Main outputs that are asked for."""
    named = [Path(name) for name in workflow.dag_settings.targets]
    makers = {output: path for path, task in PLAN.tasks.items() for output in task.outputs}
    every = [RUN.report, *(PLAN.shown(name) for name in PLAN.artifacts)]
    return [makers[name] for name in named] if named and all(name in makers for name in named) else every


@functools.cache
def wanted():
    """Main outputs of all that is asked for and of what it needs."""
    return required(PLAN.tasks, targets())


class Made:
    """What is asked of the task that makes an output: the rule's pattern, filled in by its wildcards, finds it."""

    def __init__(self, pattern):
        self.pattern = Path(pattern)
        self.log, self.benchmark = RUN.log(self.pattern), RUN.benchmark(self.pattern)

    def task(self, wildcards):
        return PLAN.tasks[Path(str(self.pattern).format(**dict(wildcards.items())))]

    def needs(self, wildcards):
        """Files that it reads, or manifests of the batches that make them; and what shall be made before."""
        task = self.task(wildcards)
        # It is there, and `ancient`, or so is nothing that it could make look old.
        first = [path for path in [task.after] if path in wanted() and (path.is_file() or not task.done)]
        return batches().instead(task.needs) + [ancient(str(path)) for path in first]

    def step(self, wildcards):
        """Its command."""
        return self.task(wildcards).name

    def job(self, wildcards):
        """Its slice of the configuration as one JSON document: what `params` compares and the command receives."""
        return self.task(wildcards).argument

    def code(self, wildcards):
        """Fingerprint of the code that it runs; it changes when behaviour may change, not with a comment."""
        return self.task(wildcards).code

    def shows(self, key):
        """A word of the artifact that it renders, for Snakemake's own report."""
        return lambda wildcards: self.task(wildcards).job[key] or wildcards[0]


def outputs(output):
    """All files of the task with this main output."""
    return PLAN.tasks[output].outputs


def in_report(made, suffix):
    """An output that Snakemake's own report (`snakemake --report`) shows too."""
    return report(
        made.pattern.with_suffix(suffix),
        caption=workflow.source_path("caption.rst"),
        category=made.shows("category"),
        labels=lambda wildcards: {key: made.shows(name)(wildcards) for key, name in LABELS.items()},
    )


LABELS = {"artifact": "paper", "title": "title"}


def names(*steps):
    """Constrain a wildcard to the names of the files that some steps make."""
    found = {re.escape(task.output.stem) for task in PLAN.of(*steps)}
    return "|".join(sorted(found)) or "none"


def folders(depth, *steps):
    """Constrain a wildcard to the folders in which some steps make them, so many levels up."""
    return "|".join(sorted({re.escape(task.output.parts[-1 - depth]) for task in PLAN.of(*steps)})) or "none"


wildcard_constraints:
    source=folders(1, "download"),
    prepared=folders(1, "prepare"),
    dataset="|".join(map(re.escape, CONFIG.datasets)),
    model="|".join([folders(1, "train", "adopt"), folders(1, "index")]),
