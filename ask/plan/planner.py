"""From artifacts to jobs: which measured values a table or figure shows, and what has to run for them.

A pure function of the configuration (and of the paper's reference values), fast enough for Snakefile parsing.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
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
from ask.config.jobs import CellJob, ClassifierSpec
from ask.config.run import ConfigError, RunConfig
from ask.plan.jobs import JobMaker, Jobs, Key, Subject
from ask.plan.paper import Paper
from ask.plan.settings import Resolver, leave_out, merge_levels, product


@dataclass
class Plan(Jobs):
    """All jobs of a run, and its artifacts' own jobs by id."""

    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def cells_of(self, artifact: str) -> list[Key]:
        """The cells (or failure analyses and timings, which have the same form) that an artifact shows."""
        shown = list(entries(self.artifacts[artifact]))
        shown += [entry["baseline"] for entry in shown if "baseline" in entry]
        cells = [cell for entry in shown for cell in (entry["cell"], *entry.get("over", ()))]
        return sorted({(cell["dataset"], cell["model"], cell["id"]) for cell in cells})

    @property
    def measurements(self) -> list[Key]:
        """Everything that artifacts read."""
        return [*self.cells, *self.failures, *self.timings, *self.costs, *self.studies]


def entries(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All measured values of a table's or figure's job."""
    yield from job.get("entries", ())
    for panel in job.get("panels", ()):
        for line in panel["lines"]:
            for point in line["points"]:
                yield point["entry"]


def plan_run(config: RunConfig, artifacts: Mapping[str, ArtifactConfig], paper: Paper | None = None) -> Plan:
    """Expand artifacts into jobs; raises ConfigError for settings that contradict each other."""
    return _Planner(config, paper or Paper()).plan(artifacts)


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
        "configfile": _configfile(config),
        "artifacts": [{key: job[key] for key in shown} for job in plan.artifacts.values()],
        "configuration": {
            "data sets": [config.datasets[name].label for name in config.datasets if name in used],
            "stand_ins": replaced,
            "trials": max((cell.trials for cell in plan.cells.values()), default=0),
            "attack cells": len(plan.cells),
            "seed": config.seed,
        },
    }


def _configfile(config: RunConfig) -> str:
    """The overlay of a run, by the convention that it bears the run's name; nothing for the paper's."""
    return "" if config.run == "paper" else f"config/{config.run}.yaml"


def claims_job(config: RunConfig, plan: Plan) -> dict[str, Any]:
    """What the claims step reads: the run's artifacts, its stand-in data sets and how to make what is missing."""
    overlay = f" --configfile {_configfile(config)}" if _configfile(config) else ""
    names = {name: config.datasets[stand_in.dataset].label for name, stand_in in config.stand_ins.items()}
    return {
        "kinds": {name: job["kind"] for name, job in plan.artifacts.items()},
        "stand_ins": {name: stand_in.model_dump(mode="json") for name, stand_in in config.stand_ins.items()},
        "labels": {name: names.get(name, dataset.label) for name, dataset in config.datasets.items()},
        "command": f"snakemake --cores all results/{config.run}/claims.csv{overlay}",
    }


class _Planner:
    def __init__(self, config: RunConfig, paper: Paper) -> None:
        self.config = config
        self.paper = paper
        self.settings = Resolver(config)
        self.result = Plan()
        self.make = JobMaker(config, self.result)

    def plan(self, artifacts: Mapping[str, ArtifactConfig]) -> Plan:
        for name, whole in artifacts.items():
            artifact = leave_out(whole, set(self.config.without))
            if artifact is None:
                continue
            make = {
                "table": self._table,
                "figure": self._figure,
                "pictures": self._pictures,
                "boundaries": self._boundaries,
            }[artifact.kind]
            try:
                self.result.artifacts[name] = make(name, artifact)
            except ConfigError as error:
                raise ConfigError(f"config/artifacts/{name}.yaml: {error}") from None
        self.make.finish()
        return self.result

    def _table(self, name: str, artifact: ArtifactConfig) -> dict[str, Any]:
        if not artifact.rows or not artifact.columns:
            raise ConfigError("a table needs rows and columns; add at least one axis of each")
        rows, columns = product(artifact.rows), product(artifact.columns)
        found = []
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            entry = self._entry(artifact, [artifact.settings, *row, *column])
            found.append({"row": i, "column": j, **entry})
        self._compare_seconds(found)
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
                for x in self.config.evaluation.x_values.get(panel.x.setting, panel.x.values):
                    value = x if panel.x.setting == "eps" else int(x)
                    at = Settings.model_validate({panel.x.setting: value})
                    entry = self._entry(artifact, [artifact.settings, panel.settings, line, at])
                    points.append({"x": self._x(panel.x.setting, x, entry), "entry": entry})
                lines.append({"label": self._labels(artifact, (line,))[0], "points": points})
            dataset = merge_levels([artifact.settings, panel.settings]).get("dataset")
            title = panel.title.replace("{dataset}", self.settings.label(dataset) if dataset else "")
            panels.append({"title": title, "x_label": panel.x.label, "y_label": panel.y_label, "lines": lines})
        points = [point["entry"] for panel in panels for line in panel["lines"] for point in line["points"]]
        return {**_head(name, artifact), "comparable": self._comparable(points), "panels": panels}

    def _pictures(self, name: str, artifact: ArtifactConfig) -> dict[str, Any]:
        if not artifact.rows or not artifact.columns:
            raise ConfigError("pictures need rows and columns; add at least one axis of each")
        rows, columns = product(artifact.rows), product(artifact.columns)
        found = []
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            found.append({"row": i, "column": j, **self._entry(artifact, [artifact.settings, *row, *column])})
        keys = [(e["cell"]["dataset"], e["cell"]["model"], e["cell"]["id"]) for e in found]
        classifier = ClassifierSpec.model_validate(found[0]["classifier"])
        self.make.example(name, [self.result.cells[key] for key in keys], classifier, artifact.class_index)
        return {
            **_head(name, artifact),
            "comparable": self._comparable(found),
            "row_headers": [self._labels(artifact, row) for row in rows],
            "column_headers": [self._labels(artifact, column) for column in columns],
            "entries": found,
        }

    def _boundaries(self, name: str, artifact: ArtifactConfig) -> dict[str, Any]:
        self.make.plane(name)
        return _head(name, artifact)

    def _compare_seconds(self, found: list[dict[str, Any]]) -> None:
        """Let timing metrics of a table read one common measurement, in which attacks take turns."""
        timed = [entry for entry in found if entry["metric"] in get_args(TimingMetric)]
        keys = [(e["cell"]["dataset"], e["cell"]["model"], e["cell"]["id"]) for e in timed]
        if not timed:
            return
        job = self.make.timing([self.result.cells[key] for key in dict.fromkeys(keys)])
        for entry, key in zip(timed, keys, strict=True):
            entry["classifier"] = {"timed": key[2]}
            entry["cell"] = {**entry["cell"], "id": job.id}

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
        dataset = merge_levels([artifact.settings, *values]).get("dataset")
        label = self.settings.label(dataset) if dataset else ""
        return [value.label.replace("{dataset}", label) for value in values]

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
        seeds = (
            1
            if self.settings.is_raw(asked["model"]) or asked["metric"] in get_args(CostMetric)
            else asked["training_seeds"]
        )
        if seeds > 1:
            entry["over"] = [self._single(artifact, asked, seed)["cell"] for seed in range(1, seeds)]
        return entry

    def _single(self, artifact: ArtifactConfig, asked: dict[str, Any], seed: int = 0) -> dict[str, Any]:
        asked = dict(asked)
        dataset, settings, scale = self.settings.dataset(asked["dataset"])
        model = asked["model"]
        if model not in self.config.models:
            raise ConfigError(f"unknown model {model!r}; known: {', '.join(self.config.models)}; add it to `models`")
        features = self.settings.features(dataset, settings, model)
        if asked["references_per_class"]:
            asked["references_per_class"] = round(asked["references_per_class"] * scale.references_scale)
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
        attack, aimed = cell.attack, bool(cell.attack.layers)
        mean, ci95 = self._paper_value(artifact, asked)
        metric = ".".join(filter(None, [asked["group"], asked["metric"]]))
        return {
            "columns": {
                "dataset": dataset,
                "model": model,
                "attack": attack.name,
                "variant": attack.variant,
                "similarity": asked["similarity"] if aimed or classifier else "",
                "attack_layers": "+".join(attack.layers),
                "classifier_similarity": classifier.similarity if classifier else "",
                "dknn_layers": "+".join(classifier.layers) if classifier else "",
                "k_in": attack.k_in if aimed else "",
                "k_out": attack.k_out if attack.name == "ask" else "",
                "classifier_k": classifier.k if classifier else "",
                "eps": attack.eps,
                "steps": attack.steps,
                "metric": metric,
            },
            "cell": {"dataset": dataset, "model": features.model, "id": self._measured_by(cell, classifier, asked)},
            "classifier": classifier.model_dump(mode="json") if classifier else {},
            "metric": metric,
            "paper_mean": mean,
            "paper_ci95": ci95,
        }

    def _cost(self, subject: Subject, metric: str) -> dict[str, Any]:
        """A value of the comparison of a model's training with plain adversarial training."""
        dataset, model = subject.features.dataset, subject.features.model
        if "at" not in self.config.models or subject.features.network is None:
            raise ConfigError(f"metric {metric!r} compares a trained model with model 'at'; name both in `models`")
        name = self.make.cost(subject, "at")
        return {
            "columns": dict.fromkeys(SETTING_COLUMNS, "") | {"dataset": dataset, "model": model, "metric": metric},
            "cell": {"dataset": dataset, "model": model, "id": name},
            "classifier": {},
            "metric": metric,
            "paper_mean": None,
            "paper_ci95": None,
        }

    def _simulated(self, study: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A value of a simulation, which settings select by what they name."""
        selected = {name: asked[name] for name in ("case", "form", "classes", "k", "spread") if name in asked}
        dataset, model, name = self.make.study(study)
        about = " ".join(f"{key}={value}" for key, value in selected.items())
        return {
            "columns": dict.fromkeys(SETTING_COLUMNS, "") | {"about": about, "metric": asked["metric"], **selected},
            "cell": {"dataset": dataset, "model": model, "id": name},
            "classifier": selected,
            "metric": asked["metric"],
            "paper_mean": None,
            "paper_ci95": None,
        }

    def _measured_by(self, cell: CellJob, classifier: ClassifierSpec | None, asked: Mapping[str, Any]) -> str:
        """Id of the measurement that holds a metric: the cell, or the analysis of its failures."""
        if asked["metric"] not in get_args(FailureMetric):
            return cell.id
        if asked["group"] is None or classifier is None:
            raise ConfigError(f"metric {asked['metric']!r} needs `group: failures` or `group: successes`")
        return self.make.failures(cell, classifier).id

    def _paper_value(self, artifact: ArtifactConfig, asked: Mapping[str, Any]) -> tuple[float | None, float | None]:
        claim = artifact.paper_claims.get(".".join(filter(None, [asked["group"], asked["metric"]])))
        if claim:
            # Claims state accuracies and shares in percent, gaps as they are; gaps are shown times 100 too.
            return self.paper.claimed(claim) * (100 if asked["metric"] == "similarity_gap" else 1), None
        return self.paper.value(artifact.paper_table, asked, self.config.models[asked["model"]].label)


def _head(name: str, artifact: ArtifactConfig) -> dict[str, Any]:
    fields = ("kind", "title", "caption", "category", "paper", "notes")
    return {"id": name} | {key: artifact.model_dump(mode="json")[key] for key in fields}
