"""The plan of the run, made once from the configuration, and what all rules ask of it."""

import re
import shlex
import shutil
import sys

sys.path.insert(0, workflow.basedir)

from ask.config.run import hand_on, load_run, name_run
from ask.errors import AskError
from ask.measure.journal import share, tend
from ask.paths import raw
from ask.plan.batches import Asked
from ask.plan.planner import plan_of
from ask.plan.predict import watch as watch_progress
from ask.plan.preflight import inspect
from ask.plan.why import adopt, arrived, remember
from ask.steps import STEPS
from ask.worker import start as start_worker
from ask.worker import use_checkout

HERE = Path(workflow.basedir)
use_checkout(str(HERE))

try:
    if workflow.overwrite_configfiles:
        name_run(workflow.config_settings.overwrite_config, workflow.overwrite_configfiles)
    PLAN = plan_of(load_run(config), HERE / "config")
    CONFIG, RUN, STANDING, FOREIGN = PLAN.config, PLAN.run, set(), {}
    if workflow.is_main_process:
        for remark in inspect(PLAN):
            logger.warning(remark)
        if not workflow.storage_settings.default_storage_provider:  # what lies here says nothing of a bucket
            adopt(PLAN.tasks, RUN)
            STANDING, FOREIGN = arrived(PLAN.tasks, RUN)
except AskError as error:
    raise WorkflowError(str(error)) from None

DATA = Path(CONFIG.data.root).expanduser()
hand_on(CONFIG)
# A GPU job asks for a GPU, so that a cluster grants one and the local scheduler keeps to the profile's cap.
GPU = int(CONFIG.device == "cuda" or (CONFIG.device == "auto" and shutil.which("nvidia-smi") is not None))
ASKED = Asked(workflow, PLAN, config, "GPU" if GPU else "CPU")


class Made:
    """What is asked of the task that makes an output: the rule's pattern, filled in by its wildcards, finds it."""

    def __init__(self, pattern):
        self.pattern = Path(pattern)
        self.log, self.benchmark = RUN.log(self.pattern), RUN.benchmark(self.pattern)

    def task(self, wildcards):
        return PLAN.made_by(Path(str(self.pattern).format(**dict(wildcards.items()))))

    def needs(self, wildcards):
        """Files that it reads, or manifests of the batches that make them; and what shall be made before."""
        task = self.task(wildcards)
        if task.output in STANDING and task.output not in ASKED.forced:
            return []
        newer = FOREIGN.get(task.output, [])
        return ASKED.batches.instead(task.needs) + newer + [ancient(str(path)) for path in ASKED.before(task)]

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


def in_report(made, suffix):
    """An output that Snakemake's own report (`snakemake --report`) shows too."""
    return report(
        made.pattern.with_suffix(suffix),
        caption=workflow.source_path("caption.rst"),
        category=made.shows("category"),
        labels=lambda wildcards: {key: made.shows(name)(wildcards) for key, name in LABELS.items()},
    )


LABELS = {"artifact": "paper", "title": "title"}


wildcard_constraints:
    source=PLAN.folders(1, "download"),
    prepared=PLAN.folders(1, "prepare"),
    dataset="|".join(map(re.escape, CONFIG.datasets)),
    model="|".join([PLAN.folders(1, "train", "adopt"), PLAN.folders(1, "index")]),
