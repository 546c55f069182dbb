"""Tasks of measured values: each is made together with all that it needs, and shared by all that ask for it.

Ids are for people and are never parsed.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from ask.config import jobs
from ask.config.attacks import ATTACKS, PIXEL, VARIANTS
from ask.config.base import LAYERS, DataSpec, Precision, Spec
from ask.config.run import ConfigError, DatasetConfig, RunConfig, StandIn, merge
from ask.config.training import ModelSpec, NetworkSpec, TrainingSpec, TrainJob, layers_of
from ask.data.sources import PUBLISHED
from ask.data.trees import fingerprint
from ask.hardware import digest_of
from ask.measure.journal import ascent_of
from ask.paths import Run, prepared
from ask.plan.graph import Task
from ask.steps import STEPS, output_of

_SHORT = {"cosine": "cos", "targeted": "-targeted", "random-sampling": "-random", "sign": "-sign"}
_SHORT |= {"rmsprop": "-successor", "adam": "", "non-targeted": "", "label": "-label"}


@dataclass(frozen=True)
class Subject:
    """What is attacked: a model of a data set, and how a stand-in scales what artifacts ask for."""

    features: jobs.FeatureSpec
    dataset: DatasetConfig
    scale: StandIn
    training_seed: int = 0
    """Which of the models that one method trains from different seeds; 0 bears the method's own name."""

    @property
    def method(self) -> str:
        """The training method, a key of ``models``."""
        return self.features.model.removesuffix(f"-seed{self.training_seed}")


class TaskMaker:
    """Adds the tasks that a measured value needs, sharing those that exist; :meth:`finish` when all are asked for."""

    def __init__(self, config: RunConfig, run: Run) -> None:
        self.config, self.run, self.data = config, run, Path(config.data.root).expanduser()
        self.tasks: dict[Path, Task] = {}
        self._later: dict[Path, Callable[[], None]] = {}
        self._timed: dict[Path, tuple[str, ...]] = {}

    def put(self, name: str, job: Any, needs: Iterable[Path] = ()) -> Path:
        """Add a task, or replace the one of the same output; returns its output."""
        job = _narrowed(job)
        output = output_of(name, job, self.run, self.data)
        self.tasks[output] = Task(name, job, output, tuple(dict.fromkeys(needs)))
        return output

    def cell(self, subject: Subject, asked: Mapping[str, Any], classifier: jobs.ClassifierSpec | None) -> jobs.CellJob:
        """The cell that measures these settings (all of them given), with all that it needs."""
        features, attack = subject.features, self._attack(asked, subject.scale)
        name = self._cell_id(subject, attack, asked)
        known = self.tasks.get(self.run.cell(features.dataset, features.model, name))
        classifiers = {*([classifier] if classifier else []), *(known.job.classifiers if known else ())}
        trials = min(asked["trials"], self.config.evaluation.max_trials or asked["trials"])
        trials = max(trials, known.job.trials if known else 0)
        given: dict[str, Any] = {}
        layers = tuple(getattr(attack, "layers", ()))
        if attack and attack.name == "ask" and attack.tau is None:
            given["tau_from"] = tuple(self._calibration("tau", subject, attack, asked, (layer,)) for layer in layers)
            searched = len(layers) == 2 or (len(layers) > 2 and self.config.calibration.more_layers == "search")
            if searched and not attack.omega:
                given["omega_from"] = self._calibration("omega", subject, attack, asked, layers, given["tau_from"])
        elif attack and attack.name == "dknn":
            what = "guides" if searches_guides(attack) else "alpha"
            given["alpha_from"] = self._calibration(what, subject, attack, asked, layers)
        elif attack and attack.grid:
            given["alpha_from"] = self._calibration("parameters", subject, attack, asked, layers)
        if attack and attack.name == "advknn":
            given["blocks_from"] = tuple(self._block(subject, attack, asked, layer, trials) for layer in layers)
        if self.config.calibration.outside and (given.keys() & {"tau_from", "alpha_from"}):
            given["calibration_images"] = self.config.calibration.images
        # An attack on the network's output is the same whatever similarity a classifier has.
        aimed = attack is None or layers
        job = jobs.CellJob(
            id=name,
            features=features,
            attack=attack,
            similarity=asked["similarity"] if aimed else self.config.evaluation.similarity,
            classifiers=tuple(sorted(classifiers, key=lambda c: (c.similarity, c.layers, c.k))),
            references_per_class=asked["references_per_class"] or subject.dataset.references_per_class,
            trials=trials,
            test_images=subject.dataset.test_images,
            precision=self._precision(features) if attack else "auto",
            seed=self.config.seed,
            **given,
        )
        if known and any(getattr(known.job, option) != getattr(job, option) for option in ("attack", *given)):
            where = f"{features.dataset}/{features.model}/{name}"
            raise ConfigError(f"{where}: two attacks have this name; give stand-ins of one data set the same eps_scale")
        for layer in {layer for one in classifiers for layer in one.layers} | set(layers):
            self._index(subject, layer)
        self.put("attack", job, self._reads(job, job.classifiers))
        return job

    def failures(self, cell: jobs.CellJob, classifier: jobs.ClassifierSpec) -> str:
        """Id of the analysis of a cell's failures and successes."""
        of_attack = (cell.similarity, getattr(cell.attack, "layers", ()), self.config.evaluation.k)
        other = (classifier.similarity, classifier.layers, classifier.k) != of_attack
        own = f"-{classifier.similarity}-L{_where(classifier.layers)}-K{classifier.k}" * other
        name = f"failures-{cell.id}{own}"

        def make(final: jobs.CellJob) -> None:
            own = final.model_copy(update={"classifiers": (classifier,)})
            layer = classifier.layers[-1]
            job = jobs.FailureJob(id=name, cell=own, similarity=classifier.similarity, layer=layer)
            self.put("failures", job, [*self.tasks[self._output(cell)].evidence, *self._reads(own, [classifier])])

        self._later[self._output(cell).with_stem(name)] = lambda: make(self._final(cell))
        return name

    def cost(self, subject: Subject, base: str) -> str:
        """Id of the comparison of what a model cost to train with what ``base`` cost."""
        dataset, model = subject.features.dataset, subject.features.model
        for one in (model, base):
            self._model(replace(subject, features=subject.features.model_copy(update={"model": one})))
        job = jobs.CostJob(id="training-cost", dataset=dataset, model=model, base=base)
        self.put("cost", job, [self.run.weights(dataset, one) for one in (model, base)])
        return job.id

    def study(self, name: str) -> None:
        """A simulation."""
        self.put("study", jobs.StudyJob(id=name, seed=self.config.seed))

    def plane(self, name: str) -> None:
        """The models trained in the plane."""
        self.put("plane", jobs.PlaneJob(id=name, seed=self.config.seed))

    def timing(self, cells: Iterable[jobs.CellJob]) -> str:
        """Id of the comparison of attacks' seconds; the first cell is what the others are compared with."""
        cells = tuple(cells)
        grid, timing = self.config.calibration, self.config.timing
        name, members = f"timing-{cells[0].id.removeprefix('ask-')}", tuple(cell.id for cell in cells)
        if self._timed.setdefault(self._output(cells[0]), members) != members:  # another table's
            name += f"-{sha256(str(members).encode()).hexdigest()[:6]}"

        def points(cell: jobs.CellJob) -> int:
            attack = cell.attack
            layers = len(getattr(attack, "layers", ()))
            if attack and attack.name == "ask":
                more = (2 * layers + 1) * (layers > 2 and grid.more_layers == "search")
                shares = len(grid.omega) if layers == 2 else more
                return layers * len(self._taus(cell.similarity)) + shares
            tuned = attack and attack.name == "dknn" and attack.optimizer != "rmsprop"
            return len(self._dknn_points(attack)) if tuned else 0

        def make() -> None:
            own = tuple(self._final(cell, trials=1, classifiers=()) for cell in cells)
            job = jobs.TimingJob(
                id=name,
                cells=own,
                grid_sizes=tuple(map(points, own)),
                calibration_images=grid.images,
                images=timing.images,
                rounds=timing.rounds,
            )
            self.put("timing", job, itertools.chain.from_iterable(self._reads(cell, ()) for cell in own))

        self._later[self._output(cells[0]).with_stem(name)] = make
        return name

    def example(
        self, name: str, cells: Iterable[jobs.CellJob], classifier: jobs.ClassifierSpec, class_index: int | None
    ) -> None:
        """The pictures of one image under several attacks."""
        cells = tuple(cells)

        def make() -> None:
            own = tuple(self._final(cell, trials=1, classifiers=()) for cell in cells)
            job = jobs.ExampleJob(id=name, cells=own, classifier=classifier, class_index=class_index)
            reads = (path for cell in own for path in self._reads(cell, [classifier]))
            read = (path for cell in cells for path in self.tasks[self._output(cell)].evidence)
            self.put("example", job, [*read, *reads])

        self._later[Path(name)] = make

    def finish(self) -> dict[Path, Task]:
        """All tasks in the order of the workflow; analyses see their cells as they are after all artifacts."""
        for make in self._later.values():
            make()
        self._share_ascents()
        order = list(STEPS)
        return dict(sorted(self.tasks.items(), key=lambda item: order.index(item[1].name)))

    def _share_ascents(self) -> None:
        """Let cells that differ in steps, and in who looks, follow the one of most steps if it reads what they do."""
        alike: dict[str, list[Task]] = {}
        for task in self.tasks.values():
            if task.name == "attack" and hasattr(task.job.attack, "steps"):
                alike.setdefault(ascent_of(task.document), []).append(task)
        for cells in alike.values():
            longest = max(cells, key=lambda task: int(task.job.attack.steps))
            for task in cells:
                if task is not longest and task.job.trials <= longest.job.trials and {*task.needs} <= {*longest.needs}:
                    self.tasks[task.output] = replace(task, after=longest.output)

    def _output(self, cell: jobs.CellJob) -> Path:
        return self.run.cell(cell.features.dataset, cell.features.model, cell.id)

    def _final(self, cell: jobs.CellJob, **changes: Any) -> jobs.CellJob:
        """A cell as all artifacts together ask for it; what its reader does not look at may be changed."""
        whole: jobs.CellJob = self.tasks[self._output(cell)].job
        return whole.model_copy(update=changes)

    def _reads(self, job: jobs.CellJob | jobs.CalibrationJob, classifiers: Iterable[jobs.ClassifierSpec]) -> list[Path]:
        """All that an attack reads: data, weights, indexes, calibrations and blocks."""
        dataset, model = job.features.dataset, job.features.model
        layers = {*getattr(job.attack, "layers", ()), *(layer for c in classifiers for layer in c.layers)}
        found = [prepared(self.data, job.features) / "facts.json"]
        if job.features.network is not None:
            found.append(self.run.weights(dataset, model))
        found += [self.run.index(dataset, model, layer) for layer in sorted(layers)]
        names = [*job.tau_from, *filter(None, [getattr(job, "omega_from", None), getattr(job, "alpha_from", None)])]
        found += [self.run.calibration(dataset, model, name) for name in names]
        return found + [self.run.blocks(dataset, model, name) for name in getattr(job, "blocks_from", ())]

    def _data(self, subject: Subject) -> Path:
        if (known := prepared(self.data, subject.features) / "facts.json") in self.tasks:
            return known
        spec, needs = spec_of(subject.dataset), []
        own = fingerprint(Path(spec.path).expanduser(), subject.dataset.fingerprint) if spec.path else ""
        if spec.source in PUBLISHED and PUBLISHED[spec.source].files:
            needs = [self.put("download", jobs.DownloadJob(source=spec.source))]
        job = jobs.PrepareJob(dataset=subject.features.dataset, data=subject.features.data, spec=spec, content=own)
        return self.put("prepare", job, needs)

    def _model(self, subject: Subject) -> list[Path]:
        """Data and, unless it is the pixels, the model."""
        features, dataset = subject.features, subject.dataset
        data = self._data(subject)
        if features.network is None:
            return [data]
        if (known := self.run.weights(features.dataset, features.model)) in self.tasks:
            return [data, known]
        method = self.config.models[subject.method]
        if method.base == "external":
            digest = digest_of(Path(method.weights).expanduser()) if method.weights else None
            adopted = jobs.AdoptJob(features=features, weights=method.weights, digest=digest, seed=self.config.seed)
            return [data, self.put("adopt", adopted, [data])]
        job = TrainJob(
            dataset=features.dataset,
            data=features.data,
            model=features.model,
            network=features.network,
            code=features.code,
            method=method.model_copy(update={"training": None, "epochs_factor": 1.0}),  # which `training` holds
            training=_training(dataset.training, method),
            precision=self.config.precision,
            seed=self.config.seed + subject.training_seed,
        )
        return [data, self.put("train", job, [data])]

    def _index(self, subject: Subject, layer: str) -> Path:
        if (known := self.run.index(subject.features.dataset, subject.features.model, layer)) in self.tasks:
            return known
        job = jobs.IndexJob.model_validate({"features": subject.features, "layer": layer})
        return self.put("index", job, self._model(subject))

    def _calibration(
        self,
        what: str,
        subject: Subject,
        attack: Any,
        asked: Mapping[str, Any],
        layers: tuple[str, ...],
        tau_from: tuple[str, ...] = (),
    ) -> str:
        """Id of the search of tau, omega, alpha, guides or what an added attack declares, for an attack on layers."""
        default, grid, similarity = self.config.evaluation, self.config.calibration, asked["similarity"]
        scale = subject.scale.eps_scale
        usual: dict[str, dict[str, Any]] = {
            "variant": {"variant": "non-targeted"} if attack.name == "ask" else {},
            "eps": {"eps": round(default.eps * scale, 6) / PIXEL},
            "step_size": {"step_size": round(default.step_size * scale, 6) / PIXEL},
        }
        changes: dict[str, Any] = {"layers": layers, "steps": default.steps, "omega": {}}
        changes |= dict.fromkeys(("k", "k_in", "k_out"), default.k)
        for name, values in usual.items():
            if name not in grid.own:
                changes.update(values)
        tuned = attack.model_copy(update={name: changes[name] for name in changes if name in type(attack).model_fields})
        points = {
            "tau": [{"tau": value} for value in self._taus(similarity)],
            "omega": [{"omega": value} for value in grid.omega]
            if len(layers) == 2
            else [{layer: float(f"{1 / len(layers):.4g}") for layer in layers}],
            "parameters": [
                dict(zip(attack.grid, values, strict=True)) for values in itertools.product(*attack.grid.values())
            ],
        }
        name = f"{what}-{_attack_id(tuned, similarity)}{self._step_id(tuned, subject.scale)}"
        if self.run.calibration(subject.features.dataset, subject.features.model, name) in self.tasks:
            return name
        job = jobs.CalibrationJob(
            id=name,
            features=subject.features,
            attack=tuned,
            similarity=similarity,
            classifier=jobs.ClassifierSpec.model_validate({"similarity": similarity, "layers": layers, "k": default.k}),
            grid=tuple(points[what] if what in points else self._dknn_points(attack)),
            images=grid.images,
            references_per_class=subject.dataset.references_per_class,
            tau_from=tau_from,
            extend=grid.extend if what in ("tau", "alpha") else 0,
            precision=self._precision(subject.features),
            seed=self.config.seed,
        )
        self.put("calibrate", job, self._reads(job, [job.classifier]))
        return name

    def _precision(self, features: jobs.FeatureSpec) -> Precision:
        return self.config.precision if features.network else "auto"  # pixels pass through nothing

    def _taus(self, similarity: str) -> tuple[float, ...]:
        return self.config.calibration.tau_cosine if similarity == "cosine" else self.config.calibration.tau_l2

    def _dknn_points(self, attack: Any) -> list[dict[str, float]]:
        """Points of DkNN-Atk's grid: its guides, or slopes, with each learning rate where it has one."""
        grid = self.config.calibration
        if searches_guides(attack):
            return [{"guides": guides} for guides in grid.dknn_guides]
        if getattr(attack, "optimizer", "sign") == "sign":
            return [{"alpha": alpha} for alpha in grid.dknn_alpha]
        return [
            {"alpha": alpha, "learning_rate": rate}
            for alpha, rate in itertools.product(grid.dknn_alpha, grid.dknn_learning_rate)
        ]

    def _block(self, subject: Subject, attack: Any, asked: Mapping[str, Any], layer: str, trials: int) -> str:
        """Id of AdvKnn's blocks of one layer, for at least so many trials."""
        features, similarity, usual = subject.features, asked["similarity"], subject.dataset.references_per_class
        size = "" if (references := asked["references_per_class"] or usual) == usual else f"-n{references}"
        name = f"{_SHORT.get(similarity, similarity)}-L{_where((layer,))}-K{attack.k}{self._fitted(attack)}{size}"
        known = self.tasks.get(self.run.blocks(features.dataset, features.model, name))
        job = jobs.BlockJob.model_validate(
            {
                "id": name,
                "features": features,
                "layer": layer,
                "similarity": similarity,
                "k": attack.k,
                "block": attack.block,
                "references_per_class": references,
                "trials": max(trials, known.job.trials if known else 0),
                "seed": self.config.seed,
            }
        )
        self.put("blocks", job, [self._data(subject), self._index(subject, layer)])
        return name

    def _attack(self, asked: Mapping[str, Any], scale: StandIn) -> Any:
        """The attack's own settings (:data:`ask.config.attacks.Attack`), what is calibrated left open; None: clean."""
        name, default = asked["attack"], self.config.evaluation
        if name == "none":
            return None
        options = {"dknn": default.dknn, "advknn": default.advknn, "autoattack": default.auto, "square": default.auto}
        given = options[name].model_dump() if name in options else {}
        given = merge(given, VARIANTS[name][asked["variant"]])
        wanted = {key: asked[key] for key in ("k_in", "k_out", "steps", "tau")}
        wanted |= {"layers": asked["attack_layers"], "k": asked["k_in"], "alpha": None, "learning_rate": None}
        if (first := asked["omega"]) is not None:
            wanted["omega"] = dict(zip(asked["attack_layers"], (first, round(1 - first, 9)), strict=True))
        wanted |= {key: round(asked[key] * scale.eps_scale, 6) / PIXEL for key in ("eps", "step_size")}
        kind = ATTACKS[name]
        return kind(**given, **{key: value for key, value in wanted.items() if key in kind.model_fields})

    def _cell_id(self, subject: Subject, attack: Any, asked: Mapping[str, Any]) -> str:
        references, similarity = asked["references_per_class"], asked["similarity"]
        suffix = f"-n{references}" if references and references != subject.dataset.references_per_class else ""
        if attack is None:
            return f"clean-{_SHORT.get(similarity, similarity)}{suffix}"
        k, suffix = f"K{asked['k_in']}", f"{self._fitted(attack)}{suffix}"
        if attack.name in ("autoattack", "square"):
            return _attack_id(attack, similarity, k) + suffix
        k += f"x{asked['k_out']}" if asked["k_out"] != asked["k_in"] else ""
        fixed = "".join(f"-{name[0]}{asked[name]:g}" for name in ("tau", "omega") if asked[name] is not None)
        step = self._step_id(attack, subject.scale)
        return f"{_attack_id(attack, similarity, k)}-s{attack.steps}{step}{fixed}{suffix}"

    def _fitted(self, attack: Any) -> str:
        """Mark of AdvKnn's blocks that are not the run's own."""
        return "-fitted" if attack.name == "advknn" and attack.block != self.config.evaluation.advknn.block else ""

    def _step_id(self, attack: Any, scale: StandIn) -> str:
        default = round(self.config.evaluation.step_size * scale.eps_scale, 6)
        own = round(attack.step_size * PIXEL, 6)
        return f"-step{own:g}" if own != default else ""


def _narrowed(job: Any) -> Any:
    """A job on a network of one's own with no layers but those that it reads: naming another one re-runs nothing."""
    if isinstance(job, TrainJob):
        read = {*layers_of(job.method), *([] if job.training.selection == "holdout" else ["conv4"])}
        return job.model_copy(update={"network": _only(job.network, read)})
    features = getattr(job, "features", None)
    if features is None or features.network is None or not features.network.factory:
        return job
    classifiers = [*getattr(job, "classifiers", ()), *filter(None, [getattr(job, "classifier", None)])]
    read = {*getattr(getattr(job, "attack", None), "layers", ()), *filter(None, [getattr(job, "layer", None)])}
    read |= {layer for one in classifiers for layer in one.layers}
    features = features.model_copy(update={"network": _only(features.network, read)})
    return job.model_copy(update={"features": features})


def _only(network: NetworkSpec, read: set[str]) -> NetworkSpec:
    return network.model_copy(update={"layers": {name: path for name, path in network.layers.items() if name in read}})


def spec_of(dataset: DatasetConfig) -> DataSpec:
    """What a data set's arrays are made from."""
    return DataSpec(**{name: getattr(dataset, name) for name in DataSpec.model_fields})


def key_of(name: str, spec: DataSpec) -> str:
    """A data set's key, under which its arrays lie: of data sets of one name, each has its own.

    Empty for a published data set as it is, under its own name.
    """
    if spec == DataSpec(source=spec.source) and name == spec.source:
        return ""
    return sha256(spec.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:8]


def _merged(shared: Any, own: Any) -> Any:
    """Settings with those that others give in their place, level by level."""
    if not isinstance(own, Spec):
        return own
    given = {name: _merged(getattr(shared, name), getattr(own, name)) for name in own.model_fields_set}
    return shared.model_copy(update=given)


def _training(shared: TrainingSpec, method: ModelSpec) -> TrainingSpec:
    """The training settings of a data set with those of a method in their place."""
    own, factor = method.training, method.epochs_factor
    training: TrainingSpec = _merged(shared, own) if own else shared
    milestones = tuple(round(factor * epoch) for epoch in training.schedule.milestones)
    schedule = training.schedule.model_copy(update={"milestones": milestones})
    return training.model_copy(update={"epochs": max(1, round(factor * training.epochs)), "schedule": schedule})


def searches_guides(attack: Any) -> bool:
    """Whether it is DkNN-Atk's successor by sign steps, which has neither a slope nor a learning rate."""
    return getattr(attack, "loss", "") == "relu" and attack.optimizer == "sign"


def _attack_id(attack: Spec, similarity: str, k: str = "") -> str:
    """Name, variant, similarity, layers, K and eps of an attack, as far as it has them."""
    settings = attack.model_dump(mode="json")
    layers, eps = settings.get("layers"), f"e{settings['eps']:g}"
    if not layers:
        return f"{settings['name']}-{eps}"
    variant = _SHORT.get(settings.get("variant", settings.get("optimizer", settings.get("target", ""))), "")
    if searches_guides(attack):
        variant = "-successor-sign"
    parts = [f"{settings['name']}{variant}", _SHORT.get(similarity, similarity), f"L{_where(layers)}", k, eps]
    return "-".join(part for part in parts if part)


def _where(layers: Sequence[str]) -> str:
    """Layers in an id: ``34`` for conv3 and conv4, ``block2+norm`` for names of one's own."""
    if all(layer in LAYERS for layer in layers):
        return "".join("in" if layer == "input" else layer.removeprefix("conv") for layer in layers)
    return "+".join(layers)
