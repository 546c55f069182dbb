"""The steps of the workflow, each once: its command, what it reads and makes, and the code that does it.

A new kind of analysis is a job type in :mod:`ask.config.jobs`, a function in a module of :mod:`ask.measure` and an
entry here. No code fingerprint counts this module: adding a step re-runs nothing that exists.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ask.config import jobs
from ask.config.attacks import ATTACKS
from ask.config.base import Spec
from ask.config.training import METHOD_HOMES, TrainJob
from ask.paths import Run, prepared, raw


@dataclass(frozen=True, kw_only=True)
class Step:
    """A kind of job."""

    text: str
    """What it does, in a line."""
    does: str
    """``module:function``, called with the job and a :class:`ask.measure.place.Place`; steps that render, with the job
    and the run. What it returns (a record, or a record and arrays) is written to ``output``; otherwise it has written
    its files itself."""
    stage: str
    """What a run's jobs are summed up by."""
    job: type[Spec] | None = None
    """What its document is parsed into; None: it is taken as it is."""
    output: Callable[[Any, Run, Path], Path]
    """Its main output, from the job, the run and the folder of data."""
    suffixes: tuple[str, ...] = ()
    """Of all outputs, if they lie beside the main one under its name."""
    also: tuple[str, ...] = ()
    """Names of other outputs beside the main one."""
    modules: tuple[str, ...] = ()
    """Modules whose code counts beside its own."""
    device: bool = False
    """Whether it computes on the run's device."""


_TABLE = (".csv", ".json", ".md", ".tex", ".html")
_DRAWING = (".csv", ".svg", ".png", ".pdf")
_RECORD = (".json", ".npz")
_ARRAYS = tuple(f"{split}_{kind}.npy" for split in ("train", "test") for kind in ("images", "labels"))
RENDERED = "tables and figures"
"""Stage of the steps that measure nothing."""


def _of_features(place: Callable[[Run], Callable[[str, str, str], Path]]) -> Callable[[Any, Run, Path], Path]:
    """Output of a job on one model's features, under its id."""
    return lambda job, run, _: place(run)(job.features.dataset, job.features.model, job.id)


def _analysis(features: Callable[[Any], Any]) -> Callable[[Any, Run, Path], Path]:
    return lambda job, run, _: run.cell(features(job).dataset, features(job).model, job.id)


STEPS: Mapping[str, Step] = {
    "download": Step(
        text="Fetch a data set's published files.",
        does="ask.measure.data:download_files",
        stage="data",
        job=jobs.DownloadJob,
        output=lambda job, run, data: raw(data, job.source) / "manifest.json",  # noqa: ARG005  # one signature
    ),
    "prepare": Step(
        text="Make a data set's arrays and check them against known facts.",
        does="ask.measure.data:prepare_arrays",
        stage="data",
        job=jobs.PrepareJob,
        output=lambda job, run, data: prepared(data, job.dataset) / "facts.json",  # noqa: ARG005
        also=_ARRAYS,
    ),
    "train": Step(
        text="Train a model; continues where it was interrupted.",
        does="ask.measure.train:train_model",
        stage="training",
        job=TrainJob,
        output=lambda job, run, _: run.weights(job.dataset, job.model),
        also=("last.safetensors", "history.csv", "config.yaml"),
        device=True,
    ),
    "index": Step(
        text="Compute the training images' features at one layer.",
        does="ask.measure.place:build_index",
        stage="indexes",
        job=jobs.IndexJob,
        output=lambda job, run, _: run.index(job.features.dataset, job.features.model, job.layer),
        device=True,
    ),
    "calibrate": Step(
        text="Pick an attack's parameters on the first test images.",
        does="ask.measure.cells:run_calibration",
        stage="calibration",
        job=jobs.CalibrationJob,
        output=_of_features(lambda run: run.calibration),
        device=True,
    ),
    "blocks": Step(
        text="Fit AdvKnn's deep kNN blocks of one layer, for every trial.",
        does="ask.measure.blocks:fit",
        stage="AdvKnn's blocks",
        job=jobs.BlockJob,
        output=_of_features(lambda run: run.blocks),
        device=True,
    ),
    "attack": Step(
        text="Evaluate one attack on one model over all trials.",
        does="ask.measure.cells:run_cell",
        stage="attacks",
        job=jobs.CellJob,
        output=_of_features(lambda run: run.cell),
        suffixes=_RECORD,
        device=True,
    ),
    "failures": Step(
        text="Describe the images that withstand an attack, and those that do not.",
        does="ask.measure.failures:analyse",
        stage="analyses",
        job=jobs.FailureJob,
        output=_analysis(lambda job: job.cell.features),
        device=True,
    ),
    "timing": Step(
        text="Time attacks in turns.",
        does="ask.measure.timing:measure",
        stage="analyses",
        job=jobs.TimingJob,
        output=_analysis(lambda job: job.cells[0].features),
        device=True,
    ),
    "cost": Step(
        text="Compare what models cost to train.",
        does="ask.measure.cost:compare",
        stage="analyses",
        job=jobs.CostJob,
        output=_analysis(lambda job: job),
    ),
    "study": Step(
        text="Simulate what a proposition says.",
        does="ask.measure.proposition1:simulate",
        stage="analyses",
        job=jobs.StudyJob,
        output=lambda job, run, _: run.cell("simulated", "none", job.id),
    ),
    "plane": Step(
        text="Train and attack models in the plane.",
        does="ask.measure.plane:show",
        stage="analyses",
        job=jobs.PlaneJob,
        output=lambda job, run, _: run.example(job.id),
        suffixes=_RECORD,
        modules=("ask.training.ask_def",),
    ),
    "example": Step(
        text="Attack one image and find its nearest references.",
        does="ask.measure.example:show",
        stage="analyses",
        job=jobs.ExampleJob,
        output=lambda job, run, _: run.example(job.id),
        suffixes=_RECORD,
        device=True,
    ),
    "table": Step(
        text="Render a table as CSV, Markdown, LaTeX and HTML.",
        does="ask.report.tables:render_table",
        stage=RENDERED,
        output=lambda job, run, _: run.table(job["id"]),
        suffixes=_TABLE,
    ),
    "figure": Step(
        text="Draw a figure as SVG, PNG and PDF.",
        does="ask.report.figures:render_figure",
        stage=RENDERED,
        output=lambda job, run, _: run.figure(job["id"]),
        suffixes=(".csv", ".json", *_DRAWING[1:]),
    ),
    "pictures": Step(
        text="Draw one image with its neighbours as SVG, PNG and PDF.",
        does="ask.report.pictures:render_pictures",
        stage=RENDERED,
        output=lambda job, run, _: run.figure(job["id"]),
        suffixes=_DRAWING,
    ),
    "boundaries": Step(
        text="Draw the plane's decision boundaries as SVG, PNG and PDF.",
        does="ask.report.boundaries:render_boundaries",
        stage=RENDERED,
        output=lambda job, run, _: run.figure(job["id"]),
        suffixes=_DRAWING,
    ),
    "claims": Step(
        text="Evaluate the paper's claims from the run's tables and figures.",
        does="ask.report.claims.ledger:render_claims",
        stage="claims and report",
        output=lambda job, run, _: run.claims,  # noqa: ARG005
    ),
    "report": Step(
        text="Write the report page.",
        does="ask.report.site:render_report",
        stage="claims and report",
        output=lambda job, run, _: run.report,  # noqa: ARG005
    ),
}
"""All steps, in the order of the workflow."""


def modules_of(name: str, job: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules a job's results depend on: its step's, and those of the attacks and the method that it runs."""
    step = STEPS[name]
    attacks = [part["attack"]["name"] for part in (job, *job.get("cells", ())) if part.get("attack")]
    homes = sorted({str(getattr(ATTACKS[attack], "home", "")) for attack in attacks})
    method = job.get("method") or {}
    methods = [METHOD_HOMES[part] for part in (method.get("base"), method.get("regulariser")) if part in METHOD_HOMES]
    return (step.does.partition(":")[0], *step.modules, *homes, *methods)
