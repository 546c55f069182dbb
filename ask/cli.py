"""The command line: every step of the workflow as a command that also works without Snakemake.

A step gets its whole slice of the configuration as one JSON document (``--job``), so a result's metadata
holds all that is needed to make it again. No logic lives here: parse, call, write.
"""

import argparse
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ask.attacks import HOMES
from ask.paths import Run, prepared
from ask.plan import PLANNING
from ask.plan import register as register_planning
from ask.slicing import SLICING
from ask.slicing import register as register_slicing

STEPS: dict[str, tuple[str, ...]] = {
    "download": ("ask.data.downloading",),
    "prepare": ("ask.data.preparing",),
    "train": ("ask.training.loop",),
    "index": ("ask.measure.place",),
    "calibrate": ("ask.measure.cells",),
    "blocks": ("ask.measure.blocks",),
    "attack": ("ask.measure.cells",),
    "failures": ("ask.measure.failures",),
    "timing": ("ask.measure.timing",),
    "cost": ("ask.measure.cost",),
    "example": ("ask.measure.example",),
    "study": ("ask.measure.proposition1",),
    "plane": ("ask.measure.plane", "ask.training.ask_def"),
    "table": ("ask.report.tables",),
    "figure": ("ask.report.figures",),
    "pictures": ("ask.report.pictures",),
    "boundaries": ("ask.report.pictures",),
    "claims": ("ask.report.claims.ledger",),
    "report": ("ask.report.site",),
}
"""Modules whose code a step depends on (what they import is found by :mod:`ask.plan.provenance`)."""

RENDERING = ("table", "figure", "pictures", "boundaries", "claims", "report")
"""Steps that measure nothing."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one step; returns the exit status. Expected failures are one line on stderr."""
    options = _parser().parse_args(arguments)
    from ask.errors import AskError

    try:
        return options.step(options) or 0
    except AskError as error:
        print(f"ask {options.name}: {error}", file=sys.stderr)
        return 1


def get_ready() -> None:
    """Find out once what every command of this process would: its arguments, and the versions that it records."""
    from ask.hardware import versions

    _parser()
    versions()


@functools.cache
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ask", description="Steps of the reproduction pipeline.")
    steps = parser.add_subparsers(dest="name", required=True, metavar="step")
    for name, (step, text) in _COMMANDS.items():
        command = steps.add_parser(name, help=text, description=text)
        command.set_defaults(step=step)
        if name == "reference":
            continue
        if name in PLANNING:
            register_planning(command, name)
            continue
        if name in SLICING:
            register_slicing(command, name)
            continue
        if name == "bench":
            _add_bench_options(command)
            continue
        if name == "check":
            command.add_argument("config", nargs="+", type=Path, help="configuration files, later ones winning")
            continue
        command.add_argument(
            "--job", required=True, type=json.loads, help="the step's slice of the configuration, JSON"
        )
        command.add_argument("--data", type=Path, default=Path("data"), help="folder of the data (default: data)")
        if name in ("download", "prepare"):
            command.add_argument("--mirror", default=os.environ.get("ASK_DATA_MIRROR"), help="folder(s) or URL")
            command.add_argument("--name", dest="dataset", default="", help="name of the prepared data set")
            continue
        command.add_argument("--run", type=Path, required=True, help="folder of the run, e.g. results/demo")
        if name == "claims":
            command.add_argument("--claims", type=Path, default=Path("config/paper/claims.csv"), help="the claims")
        if name not in RENDERING:
            command.add_argument("--code", help="fingerprint of the step's code, if known (default: computed)")
        if name not in ("cost", "study", "plane", *RENDERING):
            command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        if name == "train":
            command.add_argument("--cuda-graphs", action="store_true", help="on a GPU, replay crafting as CUDA graphs")
    return parser


def _add_bench_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("parts", nargs="*", metavar="part", help="attack, knn, train, pgd, dag, demo (default: all)")
    command.add_argument("--repeats", type=int, default=3, help="rounds in which all take turns (default: 3)")
    command.add_argument("--small", action="store_true", help="tiny shapes: shows that a part works, not its speed")
    command.add_argument("--share", type=float, default=1.0, help="of the images or queries (default: 1)")
    command.add_argument("--out", type=Path, default=Path("results/bench"), help="folder for the JSON files")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")


def _download(options: argparse.Namespace) -> None:
    from ask.config.data import DataSpec
    from ask.data.downloading import download

    print(download(DataSpec.model_validate(options.job), options.data, options.mirror or None))


def _prepare(options: argparse.Namespace) -> None:
    from ask.config.data import DataSpec
    from ask.data.downloading import download
    from ask.data.preparing import prepare

    spec = DataSpec.model_validate(options.job)
    if spec.source in ("digits", "images"):
        download(spec, options.data, None)  # nothing to fetch: notes what is there
    print(prepare(spec, options.data, options.dataset))


def _train(options: argparse.Namespace) -> None:
    from ask.config.training import TrainJob
    from ask.data.arrays import load
    from ask.hardware import describe, matmul_peak, usage
    from ask.training import train

    job = TrainJob.model_validate(options.job)
    folder = prepared(options.data, job.dataset)
    images, labels = load(folder, "train")
    by_test = job.training.selection == "test"
    test_images, test_labels = load(folder, "test") if by_test else (None, None)
    device = _device(options)
    facts = json.loads((folder / "facts.json").read_text())
    train(
        job,
        train_images=images,
        train_labels=labels,
        test_images=test_images,
        test_labels=test_labels,
        out=Run(options.run).model(job.dataset, job.model),
        scratch=options.run / "scratch" / job.dataset / job.model,
        device=device,
        made_with=describe(device),
        peak=matmul_peak(device),
        cuda_graphs=options.cuda_graphs,
        usage=lambda: usage(device),
        fingerprint=_code(options),
        data_hash=json.dumps(
            [facts["splits"][split]["sha256"] for split in ("train", *(["test"] if by_test else []))], sort_keys=True
        ),
    )


def _index(options: argparse.Namespace) -> None:
    from ask.config.jobs import IndexJob
    from ask.measure.place import build_index

    job = IndexJob.model_validate(options.job)
    out = Run(options.run).index(job.features.dataset, job.features.model, job.layer)
    place = _place(options)
    _atomically(out, lambda part: build_index(job, place, part))
    _print_usage(place)


def _calibrate(options: argparse.Namespace) -> None:
    from ask.config.jobs import CalibrationJob
    from ask.measure.cells import run_calibration

    job = CalibrationJob.model_validate(options.job)
    place = _place(options)
    measured = run_calibration(job, place)
    record = {"id": job.id, **measured, "job": job.model_dump(mode="json"), **_provenance(options, place)}
    _write_json(place.run.calibration(job.features.dataset, job.features.model, job.id), record)


def _attack(options: argparse.Namespace) -> None:
    import numpy as np

    from ask.config.jobs import CellJob
    from ask.measure.cells import run_cell

    job = CellJob.model_validate(options.job)
    place = _place(options)
    measured, predictions = run_cell(job, place, log=lambda line: print(line, flush=True))
    path = place.run.cell(job.features.dataset, job.features.model, job.id)
    _atomically(path.with_suffix(".npz"), lambda part: np.savez_compressed(part, allow_pickle=False, **predictions))
    record = {"id": job.id, **measured, "job": job.model_dump(mode="json"), **_provenance(options, place)}
    _write_json(path, record)


def _blocks(options: argparse.Namespace) -> None:
    from ask.config.jobs import BlockJob
    from ask.measure.blocks import fit

    job = BlockJob.model_validate(options.job)
    place = _place(options)
    fit(job, place, place.run.blocks(job.features.dataset, job.features.model, job.id))
    _print_usage(place)


def _failures(options: argparse.Namespace) -> None:
    from ask.config.jobs import FailureJob
    from ask.measure.failures import analyse

    job = FailureJob.model_validate(options.job)
    _analysis(options, job.id, job.cell.features, lambda place: analyse(job, place))


def _cost(options: argparse.Namespace) -> None:
    from ask.config.jobs import CostJob
    from ask.measure.cost import compare

    job, run = CostJob.model_validate(options.job), Run(options.run)
    record = {"id": job.id, **compare(job, run), "job": options.job, "code": _code(options)}
    _write_json(run.cell(job.dataset, job.model, job.id), record | {"command": _command(options)})


def _study(options: argparse.Namespace) -> None:
    from ask.config.jobs import StudyJob
    from ask.hardware import versions
    from ask.measure.proposition1 import simulate

    job = StudyJob.model_validate(options.job)
    record = {"id": job.id, **simulate(job), "job": options.job, "code": _code(options), "versions": versions()}
    _write_json(Run(options.run).cell("simulated", "none", job.id), record | {"command": _command(options)})


def _timing(options: argparse.Namespace) -> None:
    from ask.config.jobs import TimingJob
    from ask.measure.timing import measure

    job = TimingJob.model_validate(options.job)
    _analysis(options, job.id, job.cells[0].features, lambda place: measure(job, place))


def _analysis(options: argparse.Namespace, name: str, features: Any, work: Callable[[Any], dict[str, Any]]) -> None:
    place = _place(options)
    record = {"id": name, **work(place), "job": options.job, **_provenance(options, place)}
    _write_json(place.run.cell(features.dataset, features.model, name), record)


def _plane(options: argparse.Namespace) -> None:
    import numpy as np

    from ask.config.jobs import PlaneJob
    from ask.hardware import versions
    from ask.measure.plane import show

    job = PlaneJob.model_validate(options.job)
    record, drawn = show(job)
    path = Run(options.run).example(job.id)
    _atomically(path.with_suffix(".npz"), lambda part: np.savez_compressed(part, allow_pickle=False, **drawn))
    record = {"id": job.id, **record, "job": options.job, "code": _code(options), "versions": versions()}
    _write_json(path, record | {"command": _command(options)})


def _example(options: argparse.Namespace) -> None:
    import numpy as np

    from ask.config.jobs import ExampleJob
    from ask.measure.example import show

    job = ExampleJob.model_validate(options.job)
    place = _place(options)
    record, pictures = show(job, place)
    path = place.run.example(job.id)
    _atomically(path.with_suffix(".npz"), lambda part: np.savez_compressed(part, allow_pickle=False, **pictures))
    _write_json(path, {"id": job.id, **record, "job": options.job, **_provenance(options, place)})


def _table(options: argparse.Namespace) -> None:
    from ask.report.tables import render_table

    _print_paths(render_table(options.job, Run(options.run)))


def _figure(options: argparse.Namespace) -> None:
    from ask.report.figures import render_figure

    _print_paths(render_figure(options.job, Run(options.run)))


def _pictures(options: argparse.Namespace) -> None:
    from ask.report.pictures import render_pictures

    _print_paths(render_pictures(options.job, Run(options.run)))


def _boundaries(options: argparse.Namespace) -> None:
    from ask.report.pictures import render_boundaries

    _print_paths(render_boundaries(options.job, Run(options.run)))


def _claims(options: argparse.Namespace) -> None:
    from ask.report.claims.ledger import write_ledger

    _print_paths([write_ledger(options.job, options.claims, Run(options.run))])


def _report(options: argparse.Namespace) -> None:
    from ask.report.site import render_report

    _print_paths(render_report(options.job, Run(options.run)))


def _check(options: argparse.Namespace) -> None:
    from ask.config.run import load_artifacts, read_run
    from ask.plan.paper import Paper
    from ask.plan.planner import plan_run

    config = read_run(options.config)
    artifacts = load_artifacts(Path("config/artifacts"), config.artifacts)
    plan = plan_run(config, artifacts, Paper.read(Path("config/paper")))
    print(f"{config.run}: {len(plan.models)} models, {len(plan.calibrations)} calibrations, {len(plan.cells)} cells")


def _planning(name: str, options: argparse.Namespace) -> None:
    from ask.plan import commands

    getattr(commands, name)(options)


def _slicing(name: str, options: argparse.Namespace) -> int:
    from ask.slicing import commands

    status: int = getattr(commands, f"{name}_command")(options)
    return status


def _bench(options: argparse.Namespace) -> None:
    from importlib import import_module

    from ask.errors import AskError

    # The benchmarks and their peers are no part of the package: they lie beside it in the repository.
    repository = Path(__file__).resolve().parent.parent
    if not (repository / "bench" / "run.py").is_file():
        raise AskError(f"there is no folder bench/ in {repository}; run this in a checkout of the repository")
    sys.path.insert(0, str(repository))
    import_module("bench.run").main(
        options.parts,
        repeats=options.repeats,
        small=options.small,
        share=options.share,
        out=options.out,
        device=options.device,
    )


def _reference(options: argparse.Namespace) -> None:  # noqa: ARG001  # every command gets its options
    from ask.config.reference import write

    _print_paths(write())


_COMMANDS: Mapping[str, tuple[Callable[[argparse.Namespace], int | None], str]] = {
    "check": (_check, "Validate a configuration and count its jobs."),
    **{name: (functools.partial(_planning, name), text) for name, text in PLANNING.items()},
    **{name: (functools.partial(_slicing, name), text) for name, text in SLICING.items()},
    "reference": (_reference, "Write the configuration's JSON schema and reference page."),
    "bench": (_bench, "Time attacks, search and training against other libraries."),
    "download": (_download, "Fetch a data set's published files."),
    "prepare": (_prepare, "Make a data set's arrays and check them against known facts."),
    "train": (_train, "Train a model; continues where it was interrupted."),
    "index": (_index, "Compute the training images' features at one layer."),
    "calibrate": (_calibrate, "Pick an attack's parameters on the first test images."),
    "blocks": (_blocks, "Fit AdvKnn's deep kNN blocks of one layer, for every trial."),
    "attack": (_attack, "Evaluate one attack on one model over all trials."),
    "failures": (_failures, "Describe the images that withstand an attack, and those that do not."),
    "timing": (_timing, "Time attacks in turns."),
    "cost": (_cost, "Compare what models cost to train."),
    "plane": (_plane, "Train and attack models in the plane."),
    "study": (_study, "Simulate what a proposition says."),
    "example": (_example, "Attack one image and find its nearest references."),
    "table": (_table, "Render a table as CSV, Markdown, LaTeX and HTML."),
    "figure": (_figure, "Draw a figure as SVG, PNG and PDF."),
    "pictures": (_pictures, "Draw one image with its neighbours as SVG, PNG and PDF."),
    "boundaries": (_boundaries, "Draw the plane's decision boundaries as SVG, PNG and PDF."),
    "claims": (_claims, "Evaluate the paper's claims from the run's tables and figures."),
    "report": (_report, "Write the report page."),
}


def _place(options: argparse.Namespace) -> Any:
    from ask.measure.place import Place

    return Place(run=Run(options.run), data=options.data, device=_device(options))


def _device(options: argparse.Namespace) -> Any:
    import torch

    from ask.hardware import pick_device

    # A softmax over classes is full of denormal numbers, on which a CPU is twenty times slower. Set before the
    # first parallel operation, for its threads inherit the setting.
    torch.set_flush_denormal(True)
    return pick_device(options.device)


def _provenance(options: argparse.Namespace, place: Any) -> dict[str, Any]:
    """What a measurement was made with."""
    from ask.hardware import describe, usage, weights_read

    return {
        **describe(place.device),
        "weights": weights_read(options.job, place.run),
        "usage": usage(place.device),
        "code": _code(options),
        "command": _command(options),
    }


def _code(options: argparse.Namespace) -> str:
    """Fingerprint of the step's code: as the workflow knows it, or of what is on disk."""
    from ask.plan.provenance import fingerprint

    return options.code or fingerprint(step_modules(options.name, options.job))


def _command(options: argparse.Namespace) -> str:
    """The command that makes a measurement again."""
    job = json.dumps(options.job, separators=(",", ":"))
    return f"python -m ask {options.name} --run {shlex.quote(str(options.run))} --job {shlex.quote(job)}"


def step_modules(step: str, job: Mapping[str, Any]) -> tuple[str, ...]:
    """The modules a job depends on: those of its step, of the attacks that it runs and of its training method."""
    from ask.config.training import METHOD_HOMES

    attacks = [part["attack"]["name"] for part in (job, *job.get("cells", ())) if part.get("attack")]
    homes = sorted({HOMES[name] for name in attacks if name != "none"})
    method = job.get("method") or {}
    methods = [METHOD_HOMES[part] for part in (method.get("base"), method.get("regulariser")) if part in METHOD_HOMES]
    return (*STEPS[step], *homes, *methods)


def _atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside ``path`` and move into place, so that no half-written file ever bears its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix: NumPy adds its own otherwise
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _write_json(path: Path, record: Mapping[str, Any]) -> None:
    _atomically(path, lambda part: part.write_text(json.dumps(record, indent=1) + "\n"))


def _print_usage(place: Any) -> None:
    """For the logs of jobs whose output has no room for it."""
    from ask.hardware import usage

    print(json.dumps({"usage": usage(place.device)}))


def _print_paths(paths: Sequence[Path]) -> None:
    for path in paths:
        print(path)
