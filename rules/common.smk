"""The plan of the run, made once from the configuration, and what all rules share."""

import json
import re
import shutil
import sys

sys.path.insert(0, workflow.basedir)

from ask.cli import step_modules
from ask.config import ConfigError, export_mirror, load_artifacts, load_run
from ask.experiments import plan_run, read_paper_tables, report_job
from ask.paths import Run, prepared, raw
from ask.provenance import fingerprint
from ask.worker import start as start_worker

HERE = Path(workflow.basedir)

try:
    CONFIG = load_run(config)
    PLAN = plan_run(
        CONFIG,
        load_artifacts(HERE / "config/artifacts", CONFIG.artifacts),
        read_paper_tables(HERE / "config/paper/tables.csv"),
    )
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RUN = Run(Path("results") / CONFIG.run)
DATA = Path(CONFIG.data.root)
export_mirror(CONFIG)
# A GPU job asks for a GPU, so that a cluster grants one and the local scheduler keeps to the profile's cap.
GPU = int(CONFIG.device == "cuda" or (CONFIG.device == "auto" and shutil.which("nvidia-smi") is not None))


def any_of(names):
    """Constrain a wildcard to known values."""
    return "|".join(sorted(re.escape(name) for name in names)) or "none"


def document(job):
    """A job's slice of the configuration as one JSON document: what `params` compares and the command receives."""
    plain = job if isinstance(job, dict) else job.model_dump(mode="json")
    return json.dumps(plain, separators=(",", ":"))


def code(step, job=None):
    """Fingerprint of the code that a step runs; it changes when behaviour may change, not with a comment."""
    plain = {} if job is None or isinstance(job, dict) else job.model_dump(mode="json")
    return fingerprint(step_modules(step, plain))


def weights(wildcards):
    """The weights that a job reads: none on raw pixels."""
    if (wildcards.dataset, wildcards.model) not in PLAN.models:
        return []
    return RUN.model(wildcards.dataset, wildcards.model) / "weights.safetensors"


def calibrations(dataset, model, job):
    """Calibrations that a job reads."""
    names = [*job.tau_from, *filter(None, [getattr(job, "omega_from", None)])]
    return [RUN.calibration(dataset, model, name) for name in names]


def indexes(dataset, model, job):
    """Indexes of every layer that a job attacks or searches."""
    classifiers = getattr(job, "classifiers", None) or (job.classifier,)
    layers = sorted({*job.attack.layers, *(layer for c in classifiers for layer in c.layers)})
    return [RUN.index(dataset, model, layer) for layer in layers]


PUBLISHED = {"cifar10", "imagenette", "mnist", "fashion_mnist"}
TABLE_FORMATS = (".md", ".tex", ".html")
FIGURE_FORMATS = (".svg", ".png", ".pdf")


def source_of(wildcards):
    """What a data set is made from: published files, a user's own, or nothing (embedded)."""
    spec = PLAN.data[wildcards.dataset]
    if spec.source in PUBLISHED:
        return raw(DATA, spec.source) / "manifest.json"
    return spec.path or []


def calibration(wildcards):
    """Job of a calibration."""
    return PLAN.calibrations[wildcards.dataset, wildcards.model, wildcards.calibration]


def cell(wildcards):
    """Job of a cell."""
    return PLAN.cells[wildcards.dataset, wildcards.model, wildcards.cell]


def cells_of(name):
    """Measurements that an artifact shows."""
    return [RUN.cell(*key) for key in PLAN.cells_of(name)]


def formats(path, *suffixes):
    """A file and its siblings in other formats."""
    return [path, *(path.with_suffix(suffix) for suffix in suffixes)]


def log_of(output):
    """Log file of an output: the same path under logs/."""
    return RUN.root / "logs" / Path(output).relative_to(RUN.root).with_suffix(".log")


def benchmark_of(output):
    """Time and memory of a job: the same path under benchmarks/."""
    return RUN.root / "benchmarks" / Path(output).relative_to(RUN.root).with_suffix(".tsv")


wildcard_constraints:
    dataset=any_of(PLAN.data),
    source=any_of({spec.source for spec in PLAN.data.values()}),
    model=any_of(CONFIG.models),
    layer=any_of({layer for _, _, layer in PLAN.indexes}),
    calibration=any_of({name for _, _, name in PLAN.calibrations}),
    cell=any_of({name for _, _, name in PLAN.cells}),
    table=any_of(name for name, job in PLAN.artifacts.items() if job["kind"] == "table"),
    figure=any_of(name for name, job in PLAN.artifacts.items() if job["kind"] == "figure"),
