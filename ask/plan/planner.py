"""From artifacts to jobs: which measured values a table or figure shows, and what has to run for them.

A pure function of the configuration (and of the paper's reference values), fast enough for Snakefile parsing.
"""

import itertools
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ask.config.artifacts import (
    SETTING_COLUMNS,
    ArtifactConfig,
    AxisValue,
    CostMetric,
    FailureMetric,
    Settings,
    TimingMetric,
)
from ask.config.attacks import PIXEL
from ask.config.jobs import CellJob, ClassifierSpec
from ask.config.run import ConfigError, RunConfig, base, load_artifacts, read_run, validate
from ask.data.sources import PUBLISHED
from ask.errors import AskError
from ask.paths import Run
from ask.plan.graph import Task
from ask.plan.paper import Paper
from ask.plan.settings import Resolver, leave_out, merge_levels, product
from ask.plan.tasks import Subject, TaskMaker

SHOWN = ("id", "kind", "title", "caption", "category", "paper", "notes", "labels", "comparable")
"""What the report needs of an artifact's document."""
CONFIG = Path("config")
if not (CONFIG / "paper").is_dir() and (beside := Path(__file__).resolve().parents[2] / CONFIG).is_dir():
    CONFIG = beside  # in another folder than the project's, as with `snakemake --directory`
ARTIFACTS, PAPER = CONFIG / "artifacts", CONFIG / "paper"
MEASUREMENTS = ("attack", "failures", "timing", "cost", "study")
"""Steps whose records artifacts show."""


@dataclass
class Plan:
    """A run: its configuration, its tasks by their main outputs, and its artifacts' documents by id."""

    config: RunConfig
    run: Run
    tasks: dict[Path, Task] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def cells_of(self, artifact: str) -> list[Path]:
        """The cells (or analyses, which have the same form) that an artifact shows."""
        shown = list(entries(self.artifacts[artifact]))
        shown += [entry["baseline"] for entry in shown if "baseline" in entry]
        cells = [cell for entry in shown for cell in (entry["cell"], *entry.get("over", ()))]
        return sorted({self.run.cell(cell["dataset"], cell["model"], cell["id"]) for cell in cells})

    def made_by(self, output: Path) -> Task:
        """The task of a main output; raises AskError where no artifact needs it."""
        if output not in self.tasks:
            raise AskError(f"{output} is not part of this run: no artifact of it needs this file")
        return self.tasks[output]

    def of_model(self, dataset: str, model: str) -> list[Path]:
        """All that is measured on one model."""
        folder = self.run.cell(dataset, model, "").parent
        return [task.output for task in self.of("attack", "failures", "timing") if task.output.parent == folder]

    def of(self, *steps: str) -> list[Task]:
        """The tasks of some steps."""
        return [task for task in self.tasks.values() if task.name in steps]

    def names(self, *steps: str) -> str:
        """Constraint of a wildcard: the names of the files that some steps make."""
        return "|".join(sorted({re.escape(task.output.stem) for task in self.of(*steps)})) or "none"

    def folders(self, depth: int, *steps: str) -> str:
        """Constraint of a wildcard: the folders in which some steps make them, so many levels up."""
        return "|".join(sorted({re.escape(task.output.parts[-1 - depth]) for task in self.of(*steps)})) or "none"

    def targets(self, names: Iterable[str] = ()) -> dict[str, list[Path]]:
        """Main outputs of artifacts by id (default: all); raises AskError with what there is for an unknown one."""
        names = list(names) or list(self.artifacts)
        if unknown := [name for name in names if name not in self.artifacts]:
            raise AskError(f"no artifact {unknown[0]!r} in this run; it has {', '.join(self.artifacts)}")
        return {name: [self.shown(name)] for name in names}

    def shown(self, artifact: str) -> Path:
        """Main output of an artifact."""
        return (self.run.table if self.artifacts[artifact]["kind"] == "table" else self.run.figure)(artifact)


def plan_of(config: RunConfig, folder: Path = CONFIG) -> Plan:
    """The plan of a configuration, with the artifacts and the paper's values that lie in a folder."""
    artifacts = load_artifacts(folder / ARTIFACTS.name, config.artifacts)
    if mistakes := list(_astray(config, artifacts, folder / ARTIFACTS.name)):
        raise ConfigError("\n".join(mistakes))
    return plan_run(config, artifacts, Paper.read(folder / PAPER.name))


def _astray(config: RunConfig, artifacts: Mapping[str, ArtifactConfig], folder: Path) -> Iterator[str]:
    """Names that lead nowhere, which would be passed over or told as an artifact's mistake."""
    for name, stand_in in config.stand_ins.items():
        for one in sorted({name, stand_in.dataset} - config.datasets.keys()):
            yield f"stand_ins.{name}: there is no data set {one!r}; the run has {', '.join(config.datasets)}"
    if unknown := {*config.without} - {*config.datasets, *config.models}:
        every = {**artifacts, **load_artifacts(folder, "all")}  # a run of few artifacts may lie on one that leaves out
        parts = (part for one in every.values() for part in re.findall(r'"part":"(.*?)"', one.model_dump_json()))
        for one in sorted(unknown.difference(parts)):
            yield f"without: no data set, model or part of an artifact is called {one!r}; mend its spelling"


def load(overlays: Sequence[Path], trials: int | None = None) -> Plan:
    """The plan of the base configuration and overlays, from the project's folder; at most so many trials."""
    config = read_run([base(CONFIG), *overlays])
    if trials is not None and trials < 1:
        raise ConfigError(f"--trials {trials}: must be at least 1; leave it out for no limit")
    if trials:
        config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"max_trials": trials})})
    return plan_of(config)


def entries(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All measured values of a table's or figure's job."""
    yield from job.get("entries", ())
    for panel in job.get("panels", ()):
        for line in panel["lines"]:
            for point in line["points"]:
                yield point["entry"]


def plan_run(config: RunConfig, artifacts: Mapping[str, ArtifactConfig], paper: Paper | None = None) -> Plan:
    """Expand artifacts into tasks; raises ConfigError for settings that contradict each other."""
    return _Planner(config, paper or Paper()).plan(artifacts)


def report_job(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What the report step reads: the run's summary and the artifacts in order."""
    cells = [task.job for task in plan.of("attack")]
    used = {cell.features.dataset for cell in cells}
    replaced = [
        f"{config.datasets[one.dataset].label} in place of {PUBLISHED[name].title if name in PUBLISHED else name}"
        for name, one in Resolver(config).replaced().items()
        if one.dataset in used
    ]
    return {
        "run": config.run,
        "title": config.title or ("The paper's settings" if config.run == "paper" else f"Run {config.run}"),
        "note": config.note,
        "configfile": _configfile(config),
        "artifacts": [{key: job[key] for key in SHOWN if key in job} for job in plan.artifacts.values()],
        "configuration": {
            "data sets": [config.datasets[name].label for name in config.datasets if name in used],
            "stand_ins": replaced,
            "trials": max((cell.trials for cell in cells), default=0),
            "attack cells": len(cells),
            "seed": config.seed,
        },
    }


def _configfile(config: RunConfig) -> str:
    """The overlays of a run, as it names them, or one that bears its name; nothing for the paper's."""
    return " ".join(config.overlays) or ("" if config.run == "paper" else f"config/{config.run}.yaml")


def claims_job(config: RunConfig, plan: Plan, shown: Container[str] | None = None) -> dict[str, Any]:
    """What the claims step reads: the run's artifacts (which are shown), its data sets, how to make what is missing."""
    overlay = f" --configfile {_configfile(config)}" if _configfile(config) else ""
    names = {name: config.datasets[stand_in.dataset].label for name, stand_in in config.stand_ins.items()}
    return {
        "claims": str(PAPER / "claims.csv"),
        "kinds": {key: job["kind"] if key in (shown or plan.artifacts) else "" for key, job in plan.artifacts.items()},
        "without": list(config.without),
        "stand_ins": {name: one.model_dump(mode="json") for name, one in Resolver(config).replaced().items()},
        "labels": {name: names.get(name, dataset.label) for name, dataset in config.datasets.items()},
        "command": f"snakemake --cores all results/{config.run}/claims.csv{overlay}",
    }


class _Planner:
    def __init__(self, config: RunConfig, paper: Paper) -> None:
        self.config, self.paper = config, paper
        self.settings = Resolver(config)
        self.result = Plan(config, Run(Path("results") / config.run))
        self.make = TaskMaker(config, self.result.run)

    def plan(self, artifacts: Mapping[str, ArtifactConfig]) -> Plan:
        result, make = self.result, self.make
        for name, whole in artifacts.items():
            if artifact := leave_out(whole, set(self.config.without)):
                head = {"id": name} | artifact.model_dump(mode="json", include=set(SHOWN))
                try:
                    document = head | getattr(self, f"_{artifact.kind}")(name, artifact)
                    result.artifacts[name] = document | {"labels": self._names(document)}
                except ConfigError as error:
                    own = (one for one in self.config.artifacts if Path(one).name == f"{name}.yaml")
                    raise ConfigError(f"{next(own, f'config/artifacts/{name}.yaml')}: {error}") from None
        result.tasks = make.finish()
        for name, document in result.artifacts.items():
            example = result.run.example(name)
            drawn = [example, example.with_suffix(".npz")] if document["kind"] in ("pictures", "boundaries") else None
            read = [path for cell in result.cells_of(name) for path in make.tasks[cell].evidence]
            make.put(document["kind"], document, drawn or read)
        shown = [path for name in result.artifacts for path in make.tasks[result.shown(name)].outputs]
        make.put("claims", claims_job(self.config, result), [*shown, PAPER / "claims.csv", PAPER / "claims.yaml"])
        measured = [task.output for task in result.of(*MEASUREMENTS)]
        make.put("report", report_job(self.config, result), [*shown, result.run.claims, *measured])
        result.tasks = make.finish()
        return result

    def _names(self, document: Mapping[str, Any]) -> dict[str, str]:
        """Labels of the data sets that an artifact shows, with those of the paper's that they stand in for."""
        shown = dict.fromkeys(entry["columns"]["dataset"] for entry in entries(document))
        return {name: self.settings.label_of(name) for name in shown if name}

    def _grid(self, artifact: ArtifactConfig) -> dict[str, Any]:
        """What tables and pictures have in common: an entry for each row and column."""
        if not artifact.rows or not artifact.columns:
            raise ConfigError(f"a {artifact.kind.rstrip('s')} needs rows and columns; add at least one axis of each")
        rows, columns = product(artifact.rows), product(artifact.columns)
        found = [
            {"row": i, "column": j, **self._entry(artifact, [artifact.settings, *row, *column])}
            for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns))
        ]
        return {
            "comparable": self._comparable(found),
            "row_headers": [self._labels(artifact, row, _at(found, row=i)) for i, row in enumerate(rows)],
            "column_headers": [
                self._labels(artifact, column, _at(found, column=j)) for j, column in enumerate(columns)
            ],
            "entries": found,
        }

    def _table(self, _: str, artifact: ArtifactConfig) -> dict[str, Any]:
        grid = self._grid(artifact)
        self._compare_seconds(grid["entries"])
        margin = {"margin": artifact.margin.model_dump(mode="json")} if artifact.margin else {}
        return {"row_names": [axis.name for axis in artifact.rows], **grid, **margin}

    def _pictures(self, name: str, artifact: ArtifactConfig) -> dict[str, Any]:
        grid = self._grid(artifact)
        classifier = ClassifierSpec.model_validate(grid["entries"][0]["classifier"])
        self.make.example(name, map(self._cell, grid["entries"]), classifier, artifact.class_index)
        return grid

    def _boundaries(self, name: str, _: ArtifactConfig) -> dict[str, Any]:
        self.make.plane(name)
        return {}

    def _figure(self, _: str, artifact: ArtifactConfig) -> dict[str, Any]:
        if not artifact.panels:
            raise ConfigError("a figure needs panels; add at least one")
        panels: list[dict[str, Any]] = []
        for panel in artifact.panels:
            lines = []
            for line in panel.lines.values:
                points: list[dict[str, Any]] = []
                given = self.config.evaluation.x_values.get(panel.x.setting)
                for x in given or panel.x.values:
                    at = validate(Settings, {panel.x.setting: x}, "evaluation.x_values" if given else "x.values")
                    entry = self._entry(artifact, [artifact.settings, panel.settings, line, at])
                    points.append({"x": self._x(panel.x.setting, x, entry), "entry": entry})
                label = self._labels(artifact, (line,), [point["entry"] for point in points])[0]
                lines.append({"label": label, "points": points})
            dataset = merge_levels([artifact.settings, panel.settings]).get("dataset")
            title = panel.title.replace("{dataset}", self.settings.label(dataset) if dataset else "")
            panels.append({"title": title, "x_label": panel.x.label, "y_label": panel.y_label, "lines": lines})
        return {"comparable": self._comparable(entries({"panels": panels})), "panels": panels}

    def _compare_seconds(self, found: list[dict[str, Any]]) -> None:
        """Let timing metrics of a table read one measurement of each model, in which attacks take turns."""
        timed = [entry for entry in found if entry["metric"] in get_args(TimingMetric)]
        models: dict[tuple[str, str], dict[str, CellJob]] = {}
        for cell in map(self._cell, timed):
            models.setdefault((cell.features.dataset, cell.features.model), {})[cell.id] = cell
        races = {model: self.make.timing(cells.values()) for model, cells in models.items()}
        for entry in timed:
            cell = entry["cell"]
            entry["classifier"] = {"timed": cell["id"]}
            entry["cell"] = {**cell, "id": races[cell["dataset"], cell["model"]]}

    def _cell(self, entry: Mapping[str, Any]) -> CellJob:
        """The cell of an entry, as it is asked for so far."""
        cell = entry["cell"]
        job: CellJob = self.make.tasks[self.result.run.cell(cell["dataset"], cell["model"], cell["id"])].job
        return job

    def _x(self, setting: str, asked: float, entry: Mapping[str, Any]) -> float:
        """Position of a point: what was really used where a stand-in scales what was asked for."""
        if setting == "eps":
            return float(entry["columns"]["eps"])
        if setting == "references_per_class":
            return self._cell(entry).references_per_class
        return asked

    def _comparable(self, found: Iterable[Mapping[str, Any]]) -> bool:
        """Whether all values are of the data sets that the paper used, as published."""
        replacements = {stand_in.dataset for stand_in in self.settings.replaced().values()}
        return not any(entry["columns"]["dataset"] in replacements for entry in found)

    def _labels(
        self, artifact: ArtifactConfig, values: Iterable[AxisValue], shown: Iterable[Mapping[str, Any]]
    ) -> list[str]:
        """Headings of a row, column or line; `{eps}` is what its numbers were really measured with."""
        values = list(values)
        radii = dict.fromkeys(entry["columns"]["eps"] for entry in shown if entry["columns"]["eps"])
        eps = ", ".join(f"{radius:g}/255" for radius in radii)
        dataset = merge_levels([artifact.settings, *values]).get("dataset")
        label = self.settings.label(dataset) if dataset else ""
        return [value.label.replace("{dataset}", label).replace("{eps}", eps) for value in values]

    def _entry(self, artifact: ArtifactConfig, levels: list[Settings]) -> dict[str, Any]:
        if artifact.study:
            return self._simulated(artifact.study, merge_levels(levels))
        asked = self.settings.complete(merge_levels(levels))
        entry = self._over_seeds(artifact, asked)
        if asked["baseline"]:
            base = self._over_seeds(artifact, asked | {"model": asked["baseline"]})
            entry["baseline"] = {key: base[key] for key in ("cell", "classifier", "over") if key in base}
            means = (entry["paper_mean"], base["paper_mean"])
            entry["paper_mean"] = None if None in means else round(means[0] - means[1], 4)
            entry["paper_ci95"] = None
            entry["columns"]["metric"] += "_gain"
        return entry

    def _over_seeds(self, artifact: ArtifactConfig, asked: dict[str, Any]) -> dict[str, Any]:
        """A measured value, and where several models are asked for, the other models' cells in ``over``."""
        entry = self._single(artifact, asked)
        once = asked["metric"] in (*get_args(CostMetric), *get_args(TimingMetric))
        trained = self.settings.is_trained(asked["model"]) and not once
        if trained and asked["training_seeds"] > 1:
            entry["over"] = [self._single(artifact, asked, seed)["cell"] for seed in range(1, asked["training_seeds"])]
        return entry

    def _single(self, artifact: ArtifactConfig, asked: dict[str, Any], seed: int = 0) -> dict[str, Any]:
        asked = dict(asked)
        dataset, settings, scale = self.settings.dataset(asked["dataset"])
        model = asked["model"]
        if model not in self.config.models:
            raise ConfigError(f"unknown model {model!r}; known: {', '.join(self.config.models)}; add it to `models`")
        features = self.settings.features(dataset, settings, model)
        if asked["references_per_class"]:
            asked["references_per_class"] = max(1, round(asked["references_per_class"] * scale.references_scale))
        self.settings.check(asked, dataset, settings, features)
        if seed:
            features = features.model_copy(update={"model": f"{model}-seed{seed}"})
        subject = Subject(features, settings, scale, seed)
        if asked["metric"] in get_args(CostMetric):
            return self._cost(subject, asked["metric"])
        classifier = None
        if not asked["metric"].startswith("dnn_"):
            similarity, layers = asked["classifier_similarity"], asked["dknn_layers"]
            classifier = ClassifierSpec(similarity=similarity, layers=layers, k=asked["classifier_k"])
        cell = self.make.cell(subject, asked, classifier)
        attack, aimed = cell.attack, bool(getattr(cell.attack, "layers", ()))
        metric = ".".join(filter(None, [asked["group"], asked["metric"]]))
        columns = {
            "dataset": dataset,
            "model": model,
            "attack": asked["attack"],
            "variant": asked["variant"],
            "similarity": asked["similarity"] if aimed or classifier else "",
            "attack_layers": "+".join(getattr(attack, "layers", ())),
            "classifier_similarity": classifier.similarity if classifier else "",
            "dknn_layers": "+".join(classifier.layers) if classifier else "",
            "k_in": asked["k_in"] if aimed else "",
            "k_out": asked["k_out"] if asked["attack"] == "ask" else "",
            "classifier_k": classifier.k if classifier else "",
            "eps": round(attack.eps * PIXEL, 6) if attack else 0.0,
            "steps": getattr(attack, "steps", 0),
        }
        key = (dataset, features.model, self._measured_by(cell, classifier, asked))
        shown = classifier.model_dump(mode="json") if classifier else {}
        return _value(columns, metric, key, shown, self._paper_value(artifact, asked))

    def _cost(self, subject: Subject, metric: str) -> dict[str, Any]:
        """A value of the comparison of a model's training with plain adversarial training."""
        dataset, model = subject.features.dataset, subject.features.model
        if "at" not in self.config.models or not self.settings.is_trained(subject.method):
            raise ConfigError(f"metric {metric!r} compares a trained model with model 'at'; name both in `models`")
        name = self.make.cost(subject, "at")
        columns = dict.fromkeys(SETTING_COLUMNS, "") | {"dataset": dataset, "model": model}
        return _value(columns, metric, (dataset, model, name), {})

    def _simulated(self, study: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A value of a simulation, which settings select by what they name."""
        selected = {name: asked[name] for name in ("case", "form", "classes", "k", "spread") if name in asked}
        self.make.study(study)
        about = " ".join(f"{key}={value}" for key, value in selected.items())
        columns = dict.fromkeys(SETTING_COLUMNS, "") | {"about": about, **selected}
        return _value(columns, asked["metric"], ("simulated", "none", study), selected)

    def _measured_by(self, cell: CellJob, classifier: ClassifierSpec | None, asked: Mapping[str, Any]) -> str:
        """Id of the measurement that holds a metric: the cell, or the analysis of its failures."""
        if asked["metric"] not in get_args(FailureMetric):
            return cell.id
        if asked["group"] is None or classifier is None:
            raise ConfigError(f"metric {asked['metric']!r} needs `group: failures` or `group: successes`")
        return self.make.failures(cell, classifier)

    def _paper_value(self, artifact: ArtifactConfig, asked: Mapping[str, Any]) -> tuple[float | None, float | None]:
        claim = artifact.paper_claims.get(".".join(filter(None, [asked["group"], asked["metric"]])))
        if claim:
            # Claims state accuracies and shares in percent, gaps as they are; gaps are shown times 100 too.
            return self.paper.claimed(claim) * (100 if asked["metric"] == "similarity_gap" else 1), None
        return self.paper.value(artifact.paper_table, asked, self.config.models[asked["model"]].label)


def _at(found: Iterable[dict[str, Any]], **place: int) -> list[dict[str, Any]]:
    """Entries of a row or column."""
    return [entry for entry in found if place.items() <= entry.items()]


def _value(
    columns: dict[str, Any],
    metric: str,
    cell: tuple[str, str, str],
    classifier: dict[str, Any],
    paper: tuple[float | None, float | None] = (None, None),
) -> dict[str, Any]:
    """An entry: a measured value's tidy columns, where it is kept (data set, model, id), and the paper's value."""
    return {
        "columns": columns | {"metric": metric},
        "cell": dict(zip(("dataset", "model", "id"), cell, strict=True)),
        "classifier": classifier,
        "metric": metric,
        "paper_mean": paper[0],
        "paper_ci95": paper[1],
    }
