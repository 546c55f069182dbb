"""The jobs of a run, each once: data, models, indexes, calibrations and attack cells, with their ids.

Every job is a plain slice of the configuration. Ids are for people and are never parsed.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ask.config.data import DataSpec
from ask.config.jobs import (
    AttackSpec,
    BlockJob,
    CalibrationJob,
    CellJob,
    ClassifierSpec,
    CostJob,
    ExampleJob,
    FailureJob,
    FeatureSpec,
    IndexJob,
    Layer,
    PlaneJob,
    StudyJob,
    TimingJob,
)
from ask.config.run import DatasetConfig, RunConfig, StandIn
from ask.config.training import TrainJob

Key = tuple[str, str, str]
"""(data set, model, id) of a job."""
_SHORT = {
    "cosine": "cos",
    "l2": "l2",
    "": "",
    "non-targeted": "",
    "targeted": "-targeted",
    "random-sampling": "-random",
    "adam": "",
    "sign": "-sign",
    "successor": "-successor",
}


@dataclass
class Jobs:
    """All jobs of a run, keyed by what their files are called."""

    data: dict[str, DataSpec] = field(default_factory=dict)
    models: dict[tuple[str, str], TrainJob] = field(default_factory=dict)
    indexes: dict[Key, IndexJob] = field(default_factory=dict)
    calibrations: dict[Key, CalibrationJob] = field(default_factory=dict)
    blocks: dict[Key, BlockJob] = field(default_factory=dict)
    cells: dict[Key, CellJob] = field(default_factory=dict)
    failures: dict[Key, FailureJob] = field(default_factory=dict)
    timings: dict[Key, TimingJob] = field(default_factory=dict)
    costs: dict[Key, CostJob] = field(default_factory=dict)
    examples: dict[str, ExampleJob] = field(default_factory=dict)
    studies: dict[Key, StudyJob] = field(default_factory=dict)
    planes: dict[str, PlaneJob] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is attacked: a model of a data set, and how a stand-in scales what artifacts ask for."""

    features: FeatureSpec
    dataset: DatasetConfig
    scale: StandIn
    training_seed: int = 0
    """Which of the models that one method trains from different seeds; 0 bears the method's own name."""

    @property
    def method(self) -> str:
        """The training method, a key of ``models``."""
        return self.features.model.removesuffix(f"-seed{self.training_seed}")


class JobMaker:
    """Adds the jobs that a measured value needs, sharing those that exist."""

    def __init__(self, config: RunConfig, jobs: Jobs) -> None:
        self.config = config
        self.jobs = jobs

    def cell(self, subject: Subject, asked: Mapping[str, Any], classifier: ClassifierSpec | None) -> CellJob:
        """The cell that measures these settings (all of them given), with all that it needs."""
        features = subject.features
        attack = self._attack(asked, subject.scale)
        name = self._cell_id(subject, attack, asked)
        key = (features.dataset, features.model, name)
        known = self.jobs.cells.get(key)
        classifiers = {*([classifier] if classifier else []), *(known.classifiers if known else ())}
        trials = min(asked["trials"], self.config.evaluation.max_trials or asked["trials"])
        trials = max(trials, known.trials if known else 0)
        self._prepare(subject, {*attack.layers, *(classifier.layers if classifier else ())})
        needs: dict[str, Any] = {}
        if attack.name == "ask" and asked["tau"] is None:
            needs["tau_from"] = tuple(self._calibration("tau", subject, attack, (layer,)) for layer in attack.layers)
            if len(attack.layers) == 2:
                needs["omega_from"] = self._calibration("omega", subject, attack, attack.layers, needs["tau_from"])
        elif attack.name == "dknn":
            needs["alpha_from"] = self._calibration("alpha", subject, attack, attack.layers)
        elif attack.name == "advknn":
            needs["blocks_from"] = tuple(self._block(subject, attack, layer, trials) for layer in attack.layers)
        self.jobs.cells[key] = CellJob(
            id=name,
            features=features,
            attack=attack,
            classifiers=tuple(sorted(classifiers, key=lambda c: (c.similarity, c.layers, c.k))),
            references_per_class=asked["references_per_class"] or subject.dataset.references_per_class,
            trials=trials,
            test_images=subject.dataset.test_images,
            tau=asked["tau"] if attack.name == "ask" else None,
            seed=self.config.seed,
            **needs,
        )
        return self.jobs.cells[key]

    def failures(self, cell: CellJob, classifier: ClassifierSpec) -> FailureJob:
        """The analysis of a cell's failures and successes."""
        features = cell.features
        layer = classifier.layers[-1]
        cell = cell.model_copy(update={"classifiers": (classifier,)})
        job = FailureJob(id=f"failures-{cell.id}", cell=cell, similarity=classifier.similarity, layer=layer)
        self.jobs.failures[features.dataset, features.model, job.id] = job
        return job

    def cost(self, subject: Subject, base: str) -> str:
        """Id of the comparison of what a model cost to train with what ``base`` cost."""
        features = subject.features
        for model in (features.model, base):
            self._prepare(replace(subject, features=features.model_copy(update={"model": model})), ())
        job = CostJob(id="training-cost", dataset=features.dataset, model=features.model, base=base)
        self.jobs.costs[features.dataset, features.model, job.id] = job
        return job.id

    def study(self, name: str) -> Key:
        """Key of a simulation."""
        key = ("simulated", "none", name)
        self.jobs.studies[key] = StudyJob(id=name, seed=self.config.seed)
        return key

    def plane(self, name: str) -> None:
        """The models trained in the plane."""
        self.jobs.planes[name] = PlaneJob(id=name, seed=self.config.seed)

    def timing(self, cells: Iterable[CellJob]) -> TimingJob:
        """The comparison of attacks' seconds; the first cell is what the others are compared with."""
        cells = tuple(cells)
        first, calibration, timing = cells[0], self.config.calibration, self.config.timing
        taus = calibration.tau_cosine if first.attack.similarity == "cosine" else calibration.tau_l2
        layers = len(first.attack.layers)
        sizes = {
            "ask": layers * len(taus) + (len(calibration.omega) if layers == 2 else 0),
            "dknn": len(self._alphas("adam")),
            "dknn-sign": len(self._alphas("sign")),
        }
        job = TimingJob(
            id=f"timing-{first.id.removeprefix('ask-')}",
            cells=cells,
            grid_sizes=tuple(sizes.get(f"{c.attack.name}{_SHORT[c.attack.variant]}", 0) for c in cells),
            calibration_images=calibration.images,
            images=timing.images,
            rounds=timing.rounds,
        )
        self.jobs.timings[first.features.dataset, first.features.model, job.id] = job
        return job

    def example(self, name: str, cells: Iterable[CellJob], classifier: ClassifierSpec, class_index: int | None) -> None:
        """The pictures of one image under several attacks."""
        self.jobs.examples[name] = ExampleJob(
            id=name, cells=tuple(cells), classifier=classifier, class_index=class_index
        )

    def finish(self) -> None:
        """Give analyses their cells as they are after all artifacts; what they do not read of them stays out."""

        def final(cell: CellJob, **changes: Any) -> CellJob:
            whole = self.jobs.cells[cell.features.dataset, cell.features.model, cell.id]
            return whole.model_copy(update=changes)

        for key, job in self.jobs.failures.items():
            cell = final(job.cell, classifiers=job.cell.classifiers)
            self.jobs.failures[key] = job.model_copy(update={"cell": cell})
        for key, timing in self.jobs.timings.items():
            cells = tuple(final(cell, trials=1, classifiers=()) for cell in timing.cells)
            self.jobs.timings[key] = timing.model_copy(update={"cells": cells})
        for name, example in self.jobs.examples.items():
            cells = tuple(final(cell, trials=1, classifiers=()) for cell in example.cells)
            self.jobs.examples[name] = example.model_copy(update={"cells": cells})

    def _prepare(self, subject: Subject, layers: Iterable[str]) -> None:
        """Data, model and indexes that a cell needs."""
        features, dataset = subject.features, subject.dataset
        self.jobs.data[features.dataset] = DataSpec(**{name: getattr(dataset, name) for name in DataSpec.model_fields})
        if features.network is not None:
            self.jobs.models[features.dataset, features.model] = TrainJob(
                dataset=features.dataset,
                model=features.model,
                network=features.network,
                method=self.config.models[subject.method],
                training=dataset.training,
                seed=self.config.seed + subject.training_seed,
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
            "variant": "non-targeted" if attack.name == "ask" else attack.variant,
            "eps": round(default.eps * scale, 6),
            "step_size": round(default.step_size * scale, 6),
        }
        changes |= {name: value for name, value in usual.items() if name not in grid.own}
        tuned = AttackSpec.model_validate(attack.model_dump() | changes)
        taus = grid.tau_cosine if attack.similarity == "cosine" else grid.tau_l2
        points = {
            "tau": [{"tau": value} for value in taus],
            "omega": [{"omega": value} for value in grid.omega],
            "alpha": self._alphas(attack.variant),
        }
        name = f"{what}-{_attack_id(tuned)}{self._step_id(tuned, subject.scale)}"
        features = subject.features
        self.jobs.calibrations[features.dataset, features.model, name] = CalibrationJob(
            id=name,
            features=features,
            attack=tuned,
            classifier=ClassifierSpec(similarity=tuned.similarity, layers=tuned.layers, k=default.k),
            grid=tuple(points[what]),
            images=grid.images,
            references_per_class=subject.dataset.references_per_class,
            tau_from=tau_from,
            seed=self.config.seed,
        )
        return name

    def _alphas(self, variant: str) -> list[dict[str, float]]:
        grid = self.config.calibration
        if variant == "sign":
            return [{"alpha": alpha} for alpha in grid.dknn_alpha]
        return [
            {"alpha": alpha, "learning_rate": rate}
            for alpha, rate in itertools.product(grid.dknn_alpha, grid.dknn_learning_rate)
        ]

    def _block(self, subject: Subject, attack: AttackSpec, layer: Layer, trials: int) -> str:
        """Id of AdvKnn's blocks of one layer, for at least so many trials."""
        assert attack.advknn is not None
        features = subject.features
        name = f"{_SHORT[attack.similarity]}-L{layer.removeprefix('conv')}-K{attack.k_in}"
        key = (features.dataset, features.model, name)
        known = self.jobs.blocks.get(key)
        self.jobs.blocks[key] = BlockJob(
            id=name,
            features=features,
            layer=layer,
            similarity=attack.similarity,
            k=attack.k_in,
            block=attack.advknn.block,
            references_per_class=subject.dataset.references_per_class,
            trials=max(trials, known.trials if known else 0),
            seed=self.config.seed,
        )
        return name

    def _attack(self, asked: Mapping[str, Any], scale: StandIn) -> AttackSpec:
        name = asked["attack"]
        common = {"name": name, "variant": asked["variant"], "similarity": asked["similarity"]}
        if name == "none":
            return AttackSpec(**common, layers=(), eps=0, step_size=0, steps=0)
        default = self.config.evaluation
        if name in ("autoattack", "square"):
            eps = round(asked["eps"] * scale.eps_scale, 6)
            layers = asked["attack_layers"] if name == "square" else ()
            k = asked["k_in"]
            return AttackSpec(**common, layers=layers, k_in=k, eps=eps, step_size=0, steps=0, auto=default.auto)
        return AttackSpec(
            **common,
            layers=() if name == "pgd" else asked["attack_layers"],
            k_in=asked["k_in"],
            k_out=asked["k_out"],
            eps=round(asked["eps"] * scale.eps_scale, 6),
            step_size=round(asked["step_size"] * scale.eps_scale, 6),
            steps=asked["steps"],
            dknn=default.dknn if name == "dknn" else None,
            advknn=default.advknn if name == "advknn" else None,
        )

    def _cell_id(self, subject: Subject, attack: AttackSpec, asked: Mapping[str, Any]) -> str:
        references = asked["references_per_class"]
        suffix = f"-n{references}" if references and references != subject.dataset.references_per_class else ""
        if attack.name == "none":
            return f"clean-{_SHORT[attack.similarity]}{suffix}"
        if attack.auto:
            return _attack_id(attack, f"K{attack.k_in}") + suffix
        k = f"K{attack.k_in}" + (f"x{attack.k_out}" if attack.k_out != attack.k_in else "")
        tau = f"-t{asked['tau']:g}" if asked["tau"] is not None else ""
        return f"{_attack_id(attack, k)}-s{attack.steps}{self._step_id(attack, subject.scale)}{tau}{suffix}"

    def _step_id(self, attack: AttackSpec, scale: StandIn) -> str:
        default = round(self.config.evaluation.step_size * scale.eps_scale, 6)
        return f"-step{attack.step_size:g}" if attack.step_size != default else ""


def _attack_id(attack: AttackSpec, k: str = "") -> str:
    if not attack.layers:
        return f"{attack.name}-e{attack.eps:g}"
    layers = "in" if attack.layers == ("input",) else "".join(layer.removeprefix("conv") for layer in attack.layers)
    parts = [f"{attack.name}{_SHORT[attack.variant]}", _SHORT[attack.similarity], f"L{layers}", k, f"e{attack.eps:g}"]
    return "-".join(part for part in parts if part)
