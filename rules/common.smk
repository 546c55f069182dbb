"""The plan of the run, made once from the configuration, and what all rules share."""

import json
import re
import shutil
import sys

sys.path.insert(0, workflow.basedir)

from ask.cli import step_modules
from ask.config.run import ConfigError, export_mirror, load_artifacts, load_run
from ask.plan.planner import claims_job, plan_run, report_job
from ask.plan.paper import Paper
from ask.paths import Run, prepared, raw
from ask.plan.why import remember
from ask.plan.provenance import fingerprint
from ask.worker import start as start_worker

HERE = Path(workflow.basedir)

try:
    CONFIG = load_run(config)
    PLAN = plan_run(
        CONFIG,
        load_artifacts(HERE / "config/artifacts", CONFIG.artifacts),
        Paper.read(HERE / "config/paper"),
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


STEPS_CODE = set()


def code(step, job=None):
    """Fingerprint of the code that a step runs; it changes when behaviour may change, not with a comment."""
    plain = {} if job is None or isinstance(job, dict) else job.model_dump(mode="json")
    modules = step_modules(step, plain)
    STEPS_CODE.add(modules)
    return fingerprint(modules)


def weights(wildcards):
    """The weights that a job reads: none on raw pixels."""
    if (wildcards.dataset, wildcards.model) not in PLAN.models:
        return []
    return RUN.model(wildcards.dataset, wildcards.model) / "weights.safetensors"


def measured(job):
    """The cell whose predictions or parameters a job needs, once it has been measured."""
    return RUN.cell(job.features.dataset, job.features.model, job.id)


def needs(job):
    """All that an attack reads: data, weights, indexes, calibrations and blocks."""
    dataset, model = job.features.dataset, job.features.model
    classifiers = getattr(job, "classifiers", None) or [c for c in [getattr(job, "classifier", None)] if c]
    layers = sorted({*job.attack.layers, *(layer for c in classifiers for layer in c.layers)})
    found = [prepared(DATA, dataset) / "facts.json"]
    if (dataset, model) in PLAN.models:
        found.append(RUN.model(dataset, model) / "weights.safetensors")
    found += [RUN.index(dataset, model, layer) for layer in layers]
    names = [*job.tau_from, *filter(None, [getattr(job, "omega_from", None), getattr(job, "alpha_from", None)])]
    found += [RUN.calibration(dataset, model, name) for name in names]
    return found + [RUN.blocks(dataset, model, name) for name in getattr(job, "blocks_from", ())]


PUBLISHED = {"cifar10", "imagenette", "mnist", "fashion_mnist"}
TABLE_FORMATS = (".json", ".md", ".tex", ".html")
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


def blocks(wildcards):
    """Job of AdvKnn's blocks."""
    return PLAN.blocks[wildcards.dataset, wildcards.model, wildcards.blocks]


def failures(wildcards):
    """Job of a failure analysis."""
    return PLAN.failures[wildcards.dataset, wildcards.model, wildcards.failures]


def timing(wildcards):
    """Job of a comparison of seconds."""
    return PLAN.timings[wildcards.dataset, wildcards.model, wildcards.timing]


def cost(wildcards):
    """Job of a comparison of training costs."""
    return PLAN.costs[wildcards.dataset, wildcards.model, wildcards.cost]


def trained(dataset, *models):
    """What each training noted."""
    return [RUN.model(dataset, model) / "config.yaml" for model in dict.fromkeys(models)]


def example_needs(wildcards):
    """All that the pictures of one image are made from: the cells, for the choice of the image, and what they read."""
    job = PLAN.examples[wildcards.example]
    layers = job.classifier.layers
    found = [path for cell in job.cells for path in [measured(cell), *needs(cell)]]
    found += [RUN.index(c.features.dataset, c.features.model, layer) for c in job.cells for layer in layers]
    return sorted(set(found))


def shows(name):
    """Files of an artifact."""
    job = PLAN.artifacts[name]
    if job["kind"] == "table":
        return formats(RUN.table(name), *TABLE_FORMATS)
    return formats(RUN.figure(name), *([".json"] if job["kind"] == "figure" else []), *FIGURE_FORMATS)


def in_report(path, kind):
    """An output that Snakemake's own report (`snakemake --report`) shows too."""

    def artifact(wildcards):
        return PLAN.artifacts[getattr(wildcards, kind)]

    return report(
        path,
        caption=workflow.source_path("caption.rst"),
        category=lambda wildcards: artifact(wildcards)["category"],
        labels=lambda wildcards: {
            "artifact": artifact(wildcards)["paper"] or wildcards[0],
            "title": artifact(wildcards)["title"],
        },
    )


def of_kind(kind):
    """Ids of a kind of artifacts."""
    return [name for name, job in PLAN.artifacts.items() if job["kind"] == kind]


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
    model=any_of({*CONFIG.models, *(model for _, model in PLAN.models)}),
    layer=any_of({layer for _, _, layer in PLAN.indexes}),
    calibration=any_of({name for _, _, name in PLAN.calibrations}),
    cell=any_of({name for _, _, name in PLAN.cells}),
    blocks=any_of({name for _, _, name in PLAN.blocks}),
    failures=any_of({name for _, _, name in PLAN.failures}),
    timing=any_of({name for _, _, name in PLAN.timings}),
    cost=any_of({name for _, _, name in PLAN.costs}),
    example=any_of(PLAN.examples),
    plane=any_of(PLAN.planes),
    boundaries=any_of(of_kind("boundaries")),
    study=any_of({name for _, _, name in PLAN.studies}),
    table=any_of(of_kind("table")),
    figure=any_of(of_kind("figure")),
    pictures=any_of(of_kind("pictures")),
