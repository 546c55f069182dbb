"""From artifacts to jobs: which measured values a table or figure shows, and what has to run for them.

A pure function of the configuration (and of the paper's reference values), fast enough for Snakefile parsing.
"""

import csv
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .config import ArtifactConfig, Axis, AxisValue, ConfigError, DatasetConfig, RunConfig, Settings, StandIn
from .jobs import JobMaker, Jobs, Key, Subject
from .specs.evaluation import ClassifierSpec, FeatureSpec

ATTACK_LABELS = {"ask": "ASK-Atk", "none": "none"}
PAPER_METRICS = {"dknn_standard_accuracy": "dknn_clean_accuracy"}


@dataclass
class Plan(Jobs):
    """All jobs of a run, and its artifacts' own jobs by id."""

    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def cells_of(self, artifact: str) -> list[Key]:
        """The cells that an artifact shows."""
        keys = {(e["cell"]["dataset"], e["cell"]["model"], e["cell"]["id"]) for e in entries(self.artifacts[artifact])}
        return sorted(keys)


def entries(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All measured values of a table's or figure's job."""
    yield from job.get("entries", ())
    for panel in job.get("panels", ()):
        for line in panel["lines"]:
            for point in line["points"]:
                yield point["entry"]


def plan_run(
    config: RunConfig, artifacts: Mapping[str, ArtifactConfig], paper: Iterable[Mapping[str, str]] = ()
) -> Plan:
    """Expand artifacts into jobs; raises ConfigError for settings that contradict each other."""
    return _Planner(config, list(paper)).plan(artifacts)


def read_paper_tables(path: Path) -> list[dict[str, str]]:
    """Rows of ``config/paper/tables.csv``."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def report_job(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What the report step reads: the run's summary and the artifacts in order."""
    shown = ("id", "kind", "title", "caption", "category", "paper", "notes")
    used = {dataset for dataset, _, _ in plan.cells}
    replaced = [
        f"{config.datasets[stand_in.dataset].label} in place of {config.datasets[name].label}"
        for name, stand_in in config.stand_ins.items()
        if stand_in.dataset in used and name in config.datasets
    ]
    return {
        "run": config.run,
        "title": config.title,
        "note": config.note,
        "artifacts": [{key: job[key] for key in shown} for job in plan.artifacts.values()],
        "configuration": {
            "data sets": [config.datasets[name].label for name in config.datasets if name in used],
            "stand_ins": replaced,
            "trials": max((cell.trials for cell in plan.cells.values()), default=0),
            "attack cells": len(plan.cells),
            "seed": config.seed,
        },
    }


class _Planner:
    def __init__(self, config: RunConfig, paper: list[Mapping[str, str]]) -> None:
        self.config = config
        self.paper = paper
        self.result = Plan()
        self.make = JobMaker(config, self.result)

    def plan(self, artifacts: Mapping[str, ArtifactConfig]) -> Plan:
        for name, artifact in artifacts.items():
            make = self._table if artifact.kind == "table" else self._figure
            try:
                self.result.artifacts[name] = make(name, artifact)
            except ConfigError as error:
                raise ConfigError(f"config/artifacts/{name}.yaml: {error}") from None
        return self.result

    def _table(self, name: str, artifact: ArtifactConfig) -> dict[str, Any]:
        if not artifact.rows or not artifact.columns:
            raise ConfigError("a table needs rows and columns; add at least one axis of each")
        rows, columns = _product(artifact.rows), _product(artifact.columns)
        found = []
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            entry = self._entry(artifact, [artifact.settings, *row, *column])
            found.append({"row": i, "column": j, **entry})
        return {
            **_head(name, artifact),
            "comparable": self._comparable(found),
            "row_names": [axis.name for axis in artifact.rows],
            "row_headers": [self._labels(artifact, row) for row in rows],
            "column_headers": [self._labels(artifact, column) for column in columns],
            "entries": found,
        }

    def _figure(self, name: str, artifact: ArtifactConfig) -> dict[str, Any]:
        if not artifact.panels:
            raise ConfigError("a figure needs panels; add at least one")
        panels: list[dict[str, Any]] = []
        for panel in artifact.panels:
            lines = []
            for line in panel.lines.values:
                points = []
                for x in panel.x.values:
                    value = x if panel.x.setting == "eps" else int(x)
                    at = Settings.model_validate({panel.x.setting: value})
                    entry = self._entry(artifact, [artifact.settings, panel.settings, line, at])
                    points.append({"x": self._x(panel.x.setting, x, entry), "entry": entry})
                lines.append({"label": self._labels(artifact, (line,))[0], "points": points})
            dataset = _merge([artifact.settings, panel.settings]).get("dataset")
            title = panel.title.replace("{dataset}", self._dataset_label(dataset) if dataset else "")
            panels.append({"title": title, "x_label": panel.x.label, "y_label": panel.y_label, "lines": lines})
        points = [point["entry"] for panel in panels for line in panel["lines"] for point in line["points"]]
        return {**_head(name, artifact), "comparable": self._comparable(points), "panels": panels}

    def _x(self, setting: str, asked: float, entry: Mapping[str, Any]) -> float:
        """Position of a point: what was really used where a stand-in scales what was asked for."""
        if setting == "eps":
            return float(entry["columns"]["eps"])
        if setting == "references_per_class":
            cell = entry["cell"]
            return self.result.cells[cell["dataset"], cell["model"], cell["id"]].references_per_class
        return asked

    def _comparable(self, found: Iterable[Mapping[str, Any]]) -> bool:
        """Whether all values are of the data sets that the paper used."""
        replacements = {stand_in.dataset for stand_in in self.config.stand_ins.values()}
        return not any(entry["columns"]["dataset"] in replacements for entry in found)

    def _labels(self, artifact: ArtifactConfig, values: Iterable[AxisValue]) -> list[str]:
        values = list(values)
        dataset = _merge([artifact.settings, *values]).get("dataset")
        label = self._dataset_label(dataset) if dataset else ""
        return [value.label.replace("{dataset}", label) for value in values]

    def _entry(self, artifact: ArtifactConfig, levels: list[Settings]) -> dict[str, Any]:
        asked = self._complete(_merge(levels))
        dataset, settings, scale = self._dataset(asked["dataset"])
        model = asked["model"]
        if model not in self.config.models:
            raise ConfigError(f"unknown model {model!r}; known: {', '.join(self.config.models)}; add it to `models`")
        features = self._features(dataset, settings, model)
        if asked["references_per_class"]:
            asked["references_per_class"] = round(asked["references_per_class"] * scale.references_scale)
        self._check(asked, dataset, settings, features)
        classifier = ClassifierSpec(
            similarity=asked["similarity"], layers=asked["dknn_layers"], k=asked["classifier_k"]
        )
        cell = self.make.cell(Subject(features, settings, scale), asked, classifier)
        mean, ci95 = self._paper_value(artifact.paper_table, asked)
        return {
            "columns": {
                "dataset": dataset,
                "model": model,
                "attack": cell.attack.name,
                "variant": cell.attack.variant if cell.attack.name == "ask" else "",
                "similarity": asked["similarity"],
                "attack_layers": "+".join(cell.attack.layers),
                "dknn_layers": "+".join(asked["dknn_layers"]),
                "k_in": asked["k_in"],
                "k_out": asked["k_out"],
                "classifier_k": asked["classifier_k"],
                "eps": cell.attack.eps,
                "steps": cell.attack.steps,
                "metric": asked["metric"],
            },
            "cell": {"dataset": dataset, "model": model, "id": cell.id},
            "classifier": classifier.model_dump(mode="json"),
            "metric": asked["metric"],
            "paper_mean": mean,
            "paper_ci95": ci95,
        }

    def _complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Every setting, with the run's defaults where an artifact is silent."""
        default = self.config.evaluation
        for name in ("dataset", "model"):
            if name not in asked:
                raise ConfigError(f"no {name} given; set it in `settings`, a row or a column")
        layers = asked.get("layers") or (("input",) if self._is_raw(asked["model"]) else None)
        k = asked.get("k", default.k)
        full = {
            "attack": "ask",
            "variant": "non-targeted",
            "similarity": default.similarity,
            "attack_layers": layers,
            "dknn_layers": layers,
            "k_in": k,
            "k_out": k,
            "classifier_k": k,
            "eps": default.eps,
            "step_size": default.step_size,
            "steps": default.steps,
            "tau": None,
            "references_per_class": None,
            "trials": default.trials,
            "metric": "dknn_robust_accuracy",
        } | asked
        for name in ("attack_layers", "dknn_layers"):
            if not full[name]:
                raise ConfigError("no layers given; set `layers` (or `attack_layers` and `dknn_layers`)")
        if isinstance(full["step_size"], str):
            full["step_size"] = full["eps"] / int(full["step_size"].removeprefix("eps/"))
        return full

    def _dataset(self, name: str) -> tuple[str, DatasetConfig, StandIn]:
        """Name and configuration of a data set or of its stand-in, and how that scales settings."""
        scale = self.config.stand_ins.get(name) or StandIn(dataset=name)
        actual = scale.dataset
        if actual not in self.config.datasets:
            known = ", ".join(self.config.datasets)
            raise ConfigError(f"unknown dataset {actual!r}; known: {known}; add it to `datasets`")
        return actual, self.config.datasets[actual], scale

    def _dataset_label(self, name: str) -> str:
        label = self._dataset(name)[1].label
        original = self.config.datasets.get(name)
        return f"{label} (for {original.label})" if name in self.config.stand_ins and original else label

    def _is_raw(self, model: str) -> bool:
        return model in self.config.models and self.config.models[model].base == "none"

    def _features(self, dataset: str, settings: DatasetConfig, model: str) -> FeatureSpec:
        if self._is_raw(model):
            return FeatureSpec(dataset=dataset, model=model, network=None)
        if settings.network is None:
            raise ConfigError(
                f"model {model!r} needs a network on dataset {dataset!r};"
                f" set `datasets.{dataset}.network` or use model 'raw'"
            )
        return FeatureSpec(dataset=dataset, model=model, network=settings.network)

    def _check(self, asked: dict[str, Any], dataset: str, settings: DatasetConfig, features: FeatureSpec) -> None:
        layers = set(asked["attack_layers"]) | set(asked["dknn_layers"])
        if features.network is None and layers != {"input"}:
            raise ConfigError(f"model 'raw' has the layer 'input' only, got {sorted(layers)}; remove `layers`")
        if features.network is not None and "input" in layers:
            raise ConfigError(
                f"layer 'input' exists for model 'raw' only, got model {features.model!r}; use conv1..conv5"
            )
        per_class = asked["references_per_class"] or settings.references_per_class
        largest = max(asked["k_in"], asked["k_out"], asked["classifier_k"])
        if largest > per_class:
            raise ConfigError(
                f"K = {largest} exceeds the {per_class} references a class of dataset {dataset!r};"
                f" lower K or raise `datasets.{dataset}.references_per_class`"
            )

    def _paper_value(self, table: int | None, asked: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """The paper's mean and interval for these settings; blank fields of the paper's row match anything."""
        clean = asked["metric"] == "dknn_clean_accuracy"
        wanted = {
            "dataset": asked["dataset"],
            "model_training": self.config.models[asked["model"]].label,
            "attack": "none" if clean else ATTACK_LABELS[asked["attack"]],
            "attack_variant": "" if clean else asked["variant"],
            "similarity": asked["similarity"],
            "attack_layers": "" if clean else "+".join(asked["attack_layers"]),
            "dknn_layers": "+".join(asked["dknn_layers"]),
            "attack_k_pos": "" if clean else str(asked["k_in"]),
            "attack_k_neg": "" if clean else str(asked["k_out"]),
            "classifier_k": str(asked["classifier_k"]),
            "eps": "" if clean else f"{asked['eps']:g}",
            "steps": "" if clean else str(asked["steps"]),
        }
        for row in self.paper:
            metric = PAPER_METRICS.get(row["metric"], row["metric"])
            if row["table"] != str(table) or metric != asked["metric"]:
                continue
            if all(row[name] in ("", value) or not value for name, value in wanted.items()):
                return float(row["value_percent"]), float(row["ci95_percent"]) if row["ci95_percent"] else None
        return None, None


def _head(name: str, artifact: ArtifactConfig) -> dict[str, Any]:
    fields = ("kind", "title", "caption", "category", "paper", "notes")
    return {"id": name} | {key: artifact.model_dump(mode="json")[key] for key in fields}


def _product(axes: Iterable[Axis]) -> list[tuple[AxisValue, ...]]:
    return list(itertools.product(*(axis.values for axis in axes)))


def _merge(levels: Iterable[Settings]) -> dict[str, Any]:
    """Settings given on any level, inner levels winning."""
    merged: dict[str, Any] = {}
    for level in levels:
        merged |= {k: v for k, v in level.model_dump(exclude={"label"}).items() if v is not None}
    return merged
