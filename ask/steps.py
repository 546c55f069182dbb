"""The steps of the workflow, each once: its command, what it reads and makes, and the code that does it.

A new kind of analysis is a job type in :mod:`ask.config.jobs`, a function in a module of :mod:`ask.measure` and an
entry here. No code fingerprint counts this module: adding a step re-runs nothing that exists.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ask.config import jobs
from ask.config.attacks import ATTACKS
from ask.config.base import Spec
from ask.config.training import METHOD_HOMES, OWN_HOME, TrainJob
from ask.paths import Run, prepared, raw

RENDERED, LAST = "tables and figures", "claims and report"
"""Stages of the steps that measure nothing."""

LONGEST = 60_000
"""Bytes of a job's document on a command line at most, of which Linux takes 131,072; a longer one lies in a file."""


@dataclass(frozen=True)
class Step:
    """A kind of job."""

    stage: str
    """What a run's jobs are summed up by."""
    does: str
    """``module:function``, called with the job and a :class:`ask.measure.place.Place`; of steps that measure nothing,
    with the job and the run. A record (or a record and arrays) that it returns is written to its output; otherwise it
    has written its files itself."""
    job: type[Spec] | None
    """What its document is parsed into; None: it is taken as it is."""
    text: str
    """What it does, in a line."""
    suffixes: tuple[str, ...] = ()
    """Of all outputs, if they lie beside the main one under its name."""
    also: tuple[str, ...] = ()
    """Names of other outputs beside the main one."""
    modules: tuple[str, ...] = ()
    """Modules whose code counts beside its own."""
    device: bool = True
    """Whether it computes on the run's device."""


def _measure(stage: str, does: str, job: type[Spec], text: str, **more: Any) -> Step:
    return Step(stage, f"ask.measure.{does}", job, text, **more)


def _render(does: str, text: str, *suffixes: str, stage: str = RENDERED) -> Step:
    return Step(stage, f"ask.report.{does}", None, text, suffixes)


_ARRAYS = tuple(f"{split}_{kind}.npy" for split in ("train", "test") for kind in ("images", "labels"))
_PAIR = {"suffixes": (".json", ".npz")}
_DRAWN = (".svg", ".png", ".pdf")
_WRITTEN = (".json", ".md", ".tex", ".html")
_CHECKED = "Make a data set's arrays and check them against known facts."
_TRAINED = "Train a model; continues where it was interrupted."
_MODEL = {"also": ("last.safetensors", "history.csv", "config.yaml")}
_ADOPTED = "Take over a network that was trained elsewhere."
_FAILED = "Describe the images that withstand an attack, and those that do not."
_PLANE = {**_PAIR, "device": False, "modules": ("ask.training.ask_def",)}

STEPS: Mapping[str, Step] = {
    "download": _measure(
        "data", "data:download_files", jobs.DownloadJob, "Fetch a data set's published files.", device=False
    ),
    "prepare": _measure("data", "data:prepare_arrays", jobs.PrepareJob, _CHECKED, also=_ARRAYS, device=False),
    "train": _measure("training", "train:train_model", TrainJob, _TRAINED, **_MODEL),
    "adopt": _measure("networks trained elsewhere", "adopt:adopt", jobs.AdoptJob, _ADOPTED, also=("config.yaml",)),
    "index": _measure(
        "indexes", "place:build_index", jobs.IndexJob, "Compute all training images' features at a layer."
    ),
    "calibrate": _measure(
        "calibration",
        "calibrate:run_calibration",
        jobs.CalibrationJob,
        "Pick an attack's parameters on a few test images.",
    ),
    "blocks": _measure(
        "AdvKnn's blocks", "blocks:fit", jobs.BlockJob, "Fit AdvKnn's blocks of a layer, for every trial."
    ),
    "attack": _measure("attacks", "cells:run_cell", jobs.CellJob, "Evaluate one attack over all trials.", **_PAIR),
    "failures": _measure("analyses", "failures:analyse", jobs.FailureJob, _FAILED, **_PAIR),
    "timing": _measure("analyses", "timing:measure", jobs.TimingJob, "Time attacks in turns."),
    "cost": _measure("analyses", "cost:compare", jobs.CostJob, "Compare what models cost to train.", device=False),
    "study": _measure("analyses", "proposition1:simulate", jobs.StudyJob, "Simulate a proposition.", device=False),
    "plane": _measure("analyses", "plane:show", jobs.PlaneJob, "Train and attack models in the plane.", **_PLANE),
    "example": _measure("analyses", "example:show", jobs.ExampleJob, "Attack one image; find its neighbours.", **_PAIR),
    "table": _render("tables:render_table", "Render a table as CSV, Markdown, LaTeX and HTML.", ".csv", *_WRITTEN),
    "figure": _render("figures:render_figure", "Draw a figure as SVG, PNG and PDF.", ".csv", ".json", *_DRAWN),
    "pictures": _render("pictures:render_drawing", "Draw one image with its neighbours.", ".csv", *_DRAWN),
    "boundaries": _render("pictures:render_drawing", "Draw the plane's decision boundaries.", ".csv", *_DRAWN),
    "claims": _render("claims:render_claims", "Judge the paper's claims by the run's numbers.", stage=LAST),
    "report": _render("site:render_report", "Write the report page.", stage=LAST),
}
"""All steps, in the order of the workflow."""


def output_of(name: str, job: Any, run: Run, data: Path) -> Path:
    """A step's main output; that of an analysis is a record of the form of a cell."""
    match name:
        case "download":
            return raw(data, job.source) / "manifest.json"
        case "prepare":
            return prepared(data, job) / "facts.json"
        case "train":
            return run.weights(job.dataset, job.model)
        case "adopt":
            return run.weights(job.features.dataset, job.features.model)
        case "index":
            return run.index(job.features.dataset, job.features.model, job.layer)
        case "calibrate" | "blocks":
            place = run.calibration if name == "calibrate" else run.blocks
            return place(job.features.dataset, job.features.model, job.id)
        case "plane" | "example":
            return run.example(job.id)
        case "study":
            return run.cell("simulated", "none", job.id)
        case "claims" | "report":
            return run.claims if name == "claims" else run.report
        case "table" | "figure" | "pictures" | "boundaries":
            return (run.table if name == "table" else run.figure)(job["id"])
    whole = getattr(job, "cell", None) or next(iter(getattr(job, "cells", ())), job)
    features = getattr(whole, "features", whole)
    return run.cell(features.dataset, features.model, job.id)


def modules_of(name: str, job: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules a job's results depend on: its step's, and those of the attacks and the method that it runs."""
    step = STEPS[name]
    attacks = [part["attack"]["name"] for part in (job, *job.get("cells", ())) if part.get("attack")]
    homes = sorted({ATTACKS[attack].home for attack in attacks})
    about = [part.get("features") or part for part in (job, job.get("cell") or {}, *job.get("cells", ()))]
    own = [OWN_HOME] if any((part.get("network") or {}).get("factory") for part in about) else []
    method = job.get("method") or {}
    methods = [METHOD_HOMES[part] for part in (method.get("base"), method.get("regulariser")) if part in METHOD_HOMES]
    return (step.does.partition(":")[0], *step.modules, *homes, *methods, *own)
