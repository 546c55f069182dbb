"""The jobs of a plan with what they cost, what they need, and whether they are done."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ask.paths import Run
from ask.plan.arithmetic import Arithmetic
from ask.plan.planner import Plan


@dataclass(frozen=True)
class Task:
    """One job."""

    stage: str
    output: Path
    needs: tuple[Path, ...]
    flop: float = 0.0
    size: float = 0.0
    """Bytes of what it keeps."""
    step: str = ""
    """Its command, e.g. ``attack``."""
    job: Any = None
    """Its slice of the configuration."""

    @property
    def group(self) -> str:
        """Its stage; apart on raw pixels, where the arithmetic of an ascent is not counted."""
        features = getattr(self.job, "features", None)
        return f"{self.stage} on pixels" if features is not None and features.network is None else self.stage

    @property
    def done(self) -> bool:
        """Whether its output is there; nothing is said of whether it is up to date."""
        return self.output.is_file()

    def benchmark(self, run: Run) -> Path:
        """Where Snakemake notes its time."""
        path = self.output.with_name("train") if self.step == "train" else self.output
        return run.root / "benchmarks" / path.relative_to(run.root).with_suffix(".tsv")

    def seconds(self, run: Run) -> float | None:
        """Wall-clock time that it took, if that was noted."""
        try:
            header, values = (line.split("\t") for line in self.benchmark(run).read_text().splitlines()[:2])
        except (OSError, ValueError):
            return None
        return float(dict(zip(header, values, strict=False)).get("s", "nan"))


def tasks_of(plan: Plan, run: Run) -> dict[Path, Task]:
    """All jobs of a plan below its results, by output; the data's own are left out."""
    count = Arithmetic(plan)
    found: list[Task] = []
    needs: tuple[Path, ...]
    for (dataset, model), training in plan.models.items():
        output = _weights(run, dataset, model)
        found.append(Task("training", output, (), count.train(training), count.weights(training), "train", training))
    for key, index in plan.indexes.items():
        flop, size = count.index(index)
        needs = (_weights(run, *key[:2]),) if key[:2] in plan.models else ()
        found.append(Task("indexes", run.index(*key), needs, flop, size, "index", index))
    for key, calibration in plan.calibrations.items():
        needs = _attack_needs(plan, run, calibration, (calibration.classifier,))
        flop = count.calibration(calibration)
        found.append(Task("calibration", run.calibration(*key), needs, flop, 0, "calibrate", calibration))
    for key, blocks in plan.blocks.items():
        flop, size = count.blocks(blocks)
        needs = (run.index(key[0], key[1], blocks.layer),)
        found.append(Task("AdvKnn's blocks", run.blocks(*key), needs, flop, size, "blocks", blocks))
    for key, cell in plan.cells.items():
        needs = _attack_needs(plan, run, cell, cell.classifiers)
        found.append(Task("attacks", run.cell(*key), needs, count.cell(cell), count.predictions(cell), "attack", cell))
    found += _analyses(plan, run, count)
    for name, artifact in plan.artifacts.items():
        table = artifact["kind"] == "table"
        output = (run.table if table else run.figure)(name)
        needs = tuple(run.cell(*key) for key in plan.cells_of(name))
        if artifact["kind"] in ("pictures", "boundaries"):
            needs = (run.example(name),)
        found.append(Task("tables and figures", output, needs, 0, 0, artifact["kind"], artifact))
    return {task.output: task for task in found}


def _analyses(plan: Plan, run: Run, count: Arithmetic) -> list[Task]:
    found = []
    needs: tuple[Path, ...]
    for key, failures in plan.failures.items():
        cell = failures.cell
        needs = (run.cell(key[0], key[1], cell.id), *_attack_needs(plan, run, cell, cell.classifiers))
        found.append(Task("analyses", run.cell(*key), needs, 0, 0, "failures", failures))
    for key, timing in plan.timings.items():
        needs = tuple(path for cell in timing.cells for path in _attack_needs(plan, run, cell, cell.classifiers))
        found.append(Task("analyses", run.cell(*key), needs, count.timing(timing), 0, "timing", timing))
    for key, cost in plan.costs.items():
        needs = tuple(_weights(run, key[0], model) for model in dict.fromkeys((cost.model, cost.base)))
        found.append(Task("analyses", run.cell(*key), needs, 0, 0, "cost", cost))
    for key, study in plan.studies.items():
        found.append(Task("analyses", run.cell(*key), (), 0, 0, "study", study))
    for name, plane in plan.planes.items():
        found.append(Task("analyses", run.example(name), (), 0, 0, "plane", plane))
    for name, example in plan.examples.items():
        cells = tuple(run.cell(c.features.dataset, c.features.model, c.id) for c in example.cells)
        needs = (*cells, *(p for c in example.cells for p in _attack_needs(plan, run, c, (example.classifier,))))
        found.append(Task("analyses", run.example(name), needs, 0, 0, "example", example))
    return found


def _weights(run: Run, dataset: str, model: str) -> Path:
    return run.model(dataset, model) / "weights.safetensors"


def _attack_needs(plan: Plan, run: Run, job: Any, classifiers: Iterable[Any]) -> tuple[Path, ...]:
    dataset, model = job.features.dataset, job.features.model
    layers = sorted({*job.attack.layers, *(layer for c in classifiers for layer in c.layers)})
    found = [run.index(dataset, model, layer) for layer in layers]
    if (dataset, model) in plan.models:
        found.append(_weights(run, dataset, model))
    names = [*job.tau_from, *filter(None, [getattr(job, "omega_from", None), getattr(job, "alpha_from", None)])]
    found += [run.calibration(dataset, model, name) for name in names]
    return tuple(found + [run.blocks(dataset, model, name) for name in getattr(job, "blocks_from", ())])


def required(tasks: dict[Path, Task], targets: Iterable[Path], *, undone: bool = False) -> set[Path]:
    """Outputs of all jobs that targets need, themselves included; or of those still to do, and what only they need."""
    found: set[Path] = set()
    waiting = list(targets)
    while waiting:
        path = waiting.pop()
        if path in tasks and path not in found and not (undone and tasks[path].done):
            found.add(path)
            waiting += tasks[path].needs
    return found
