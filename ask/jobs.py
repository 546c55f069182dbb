"""The jobs of a run, each once: data, models, indexes, calibrations and attack cells, with their ids.

Every job is a plain slice of the configuration. Ids are for people and are never parsed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .config import DatasetConfig, RunConfig, StandIn
from .specs.data import DataSpec
from .specs.evaluation import AttackSpec, CalibrationJob, CellJob, ClassifierSpec, FeatureSpec, IndexJob
from .specs.training import TrainJob

Key = tuple[str, str, str]
"""(data set, model, id) of a job."""
_SHORT = {"cosine": "cos", "l2": "l2", "non-targeted": "", "targeted": "-targeted", "random-sampling": "-random"}


@dataclass
class Jobs:
    """All jobs of a run, keyed by what their files are called."""

    data: dict[str, DataSpec] = field(default_factory=dict)
    models: dict[tuple[str, str], TrainJob] = field(default_factory=dict)
    indexes: dict[Key, IndexJob] = field(default_factory=dict)
    calibrations: dict[Key, CalibrationJob] = field(default_factory=dict)
    cells: dict[Key, CellJob] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is attacked: a model of a data set, and how a stand-in scales what artifacts ask for."""

    features: FeatureSpec
    dataset: DatasetConfig
    scale: StandIn


class JobMaker:
    """Adds the jobs that a measured value needs, sharing those that exist."""

    def __init__(self, config: RunConfig, jobs: Jobs) -> None:
        self.config = config
        self.jobs = jobs

    def cell(self, subject: Subject, asked: Mapping[str, Any], classifier: ClassifierSpec) -> CellJob:
        """The cell that measures these settings (all of them given), with all that it needs."""
        features = subject.features
        attack = _attack(asked, subject.scale)
        name = self._cell_id(subject, attack, asked)
        key = (features.dataset, features.model, name)
        known = self.jobs.cells.get(key)
        classifiers = {classifier, *(known.classifiers if known else ())}
        trials = min(asked["trials"], self.config.evaluation.max_trials or asked["trials"])
        self._prepare(subject, {*attack.layers, *classifier.layers})
        tau_from: tuple[str, ...] = ()
        omega_from = None
        if attack.name == "ask" and asked["tau"] is None:
            tau_from = tuple(self._calibration("tau", subject, attack, (layer,)) for layer in attack.layers)
            if len(attack.layers) == 2:
                omega_from = self._calibration("omega", subject, attack, attack.layers, tau_from)
        self.jobs.cells[key] = CellJob(
            id=name,
            features=features,
            attack=attack,
            classifiers=tuple(sorted(classifiers, key=lambda c: (c.similarity, c.layers, c.k))),
            references_per_class=asked["references_per_class"] or subject.dataset.references_per_class,
            trials=max(trials, known.trials if known else 0),
            test_images=subject.dataset.test_images,
            tau=asked["tau"],
            tau_from=tau_from,
            omega_from=omega_from,
            seed=self.config.seed,
        )
        return self.jobs.cells[key]

    def _prepare(self, subject: Subject, layers: Iterable[str]) -> None:
        """Data, model and indexes that a cell needs."""
        features, dataset = subject.features, subject.dataset
        self.jobs.data[features.dataset] = DataSpec(**{name: getattr(dataset, name) for name in DataSpec.model_fields})
        if features.network is not None:
            self.jobs.models[features.dataset, features.model] = TrainJob(
                dataset=features.dataset,
                model=features.model,
                network=features.network,
                method=self.config.models[features.model],
                training=dataset.training,
                seed=self.config.seed,
            )
        for layer in layers:
            job = IndexJob.model_validate({"features": features, "layer": layer})
            self.jobs.indexes[features.dataset, features.model, layer] = job

    def _calibration(
        self,
        what: str,
        subject: Subject,
        attack: AttackSpec,
        layers: tuple[str, ...],
        tau_from: tuple[str, ...] = (),
    ) -> str:
        """Id of the search of tau or omega for an attack on ``layers``.

        One for each model, similarity and layer, and for each eps, step size and variant unless the configuration
        says otherwise; at the run's K and number of steps.
        """
        default, grid = self.config.evaluation, self.config.calibration
        changes: dict[str, Any] = {"layers": layers, "k_in": default.k, "k_out": default.k, "steps": default.steps}
        scale = subject.scale.eps_scale
        usual = {
            "variant": "non-targeted",
            "eps": round(default.eps * scale, 6),
            "step_size": round(default.step_size * scale, 6),
        }
        changes |= {name: value for name, value in usual.items() if name not in grid.own}
        tuned = AttackSpec.model_validate(attack.model_dump() | changes)
        taus = grid.tau_cosine if attack.similarity == "cosine" else grid.tau_l2
        name = f"{what}-{_attack_id(tuned)}{self._step_id(tuned, subject.scale)}"
        features = subject.features
        self.jobs.calibrations[features.dataset, features.model, name] = CalibrationJob(
            id=name,
            features=features,
            attack=tuned,
            classifier=ClassifierSpec(similarity=tuned.similarity, layers=tuned.layers, k=default.k),
            grid=taus if what == "tau" else grid.omega,
            images=grid.images,
            references_per_class=subject.dataset.references_per_class,
            tau_from=tau_from,
            seed=self.config.seed,
        )
        return name

    def _cell_id(self, subject: Subject, attack: AttackSpec, asked: Mapping[str, Any]) -> str:
        references = asked["references_per_class"]
        suffix = f"-n{references}" if references and references != subject.dataset.references_per_class else ""
        if attack.name == "none":
            return f"clean-{_SHORT[attack.similarity]}{suffix}"
        k = f"K{attack.k_in}" + (f"x{attack.k_out}" if attack.k_out != attack.k_in else "")
        tau = f"-t{asked['tau']:g}" if asked["tau"] is not None else ""
        return f"{_attack_id(attack, k)}-s{attack.steps}{self._step_id(attack, subject.scale)}{tau}{suffix}"

    def _step_id(self, attack: AttackSpec, scale: StandIn) -> str:
        default = round(self.config.evaluation.step_size * scale.eps_scale, 6)
        return f"-step{attack.step_size:g}" if attack.step_size != default else ""


def _attack(asked: Mapping[str, Any], scale: StandIn) -> AttackSpec:
    if asked["attack"] == "none":
        return AttackSpec(name="none", similarity=asked["similarity"], layers=(), eps=0, step_size=0, steps=0)
    return AttackSpec(
        name=asked["attack"],
        variant=asked["variant"],
        similarity=asked["similarity"],
        layers=asked["attack_layers"],
        k_in=asked["k_in"],
        k_out=asked["k_out"],
        eps=round(asked["eps"] * scale.eps_scale, 6),
        step_size=round(asked["step_size"] * scale.eps_scale, 6),
        steps=asked["steps"],
    )


def _attack_id(attack: AttackSpec, k: str = "") -> str:
    layers = "in" if attack.layers == ("input",) else "".join(layer.removeprefix("conv") for layer in attack.layers)
    parts = [f"{attack.name}{_SHORT[attack.variant]}", _SHORT[attack.similarity], f"L{layers}", k, f"e{attack.eps:g}"]
    return "-".join(part for part in parts if part)
