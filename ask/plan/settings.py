"""What an artifact asks for: settings of its levels merged, completed with the run's defaults, and checked."""

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from ask.config.artifacts import ArtifactConfig, Axis, AxisValue, CostMetric, Settings
from ask.config.attacks import VARIANTS
from ask.config.jobs import FeatureSpec
from ask.config.run import ConfigError, DatasetConfig, RunConfig, StandIn
from ask.config.training import NetworkSpec, OwnModule, layers_of
from ask.data.sources import PUBLISHED
from ask.plan.provenance import own_code
from ask.plan.tasks import key_of, spec_of

SIDES = {"cifar10": None, "imagenette": 128, "mnist": None, "fashion_mnist": None}
"""The paper's data sets, and the sides to which it resizes them (App. D-a)."""


class Resolver:
    """Completes and checks settings against a run's configuration."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config

    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Every setting, with the run's defaults where an artifact is silent."""
        default = self.config.evaluation
        for name in ("dataset", "model"):
            if name not in asked:
                raise ConfigError(f"no {name} given; set it in `settings`, a row or a column")
        layers = asked.get("layers") or (("input",) if self.is_raw(asked["model"]) else None)
        k = asked.get("k", default.k)
        attack = asked.get("attack", "ask")
        variants = list(VARIANTS[attack])
        if asked.get("variant", variants[0]) not in variants:
            raise ConfigError(f"attack {attack!r} has no variant {asked['variant']!r}; choose from {variants}")
        full = {
            "attack": attack,
            "variant": variants[0],
            "similarity": default.similarity,
            "classifier_similarity": None,
            "attack_layers": layers,
            "dknn_layers": layers,
            "k_in": k,
            "k_out": k,
            "classifier_k": k,
            "eps": default.eps,
            "step_size": default.step_size,
            "steps": default.steps,
            "tau": None,
            "omega": None,
            "references_per_class": None,
            "trials": default.trials,
            "training_seeds": default.training_seeds,
            "metric": "dknn_robust_accuracy",
            "group": None,
            "baseline": None,
        } | asked
        # PGD attacks the network's output, whose accuracy needs no layers either.
        costs = full["metric"] in get_args(CostMetric)
        needed = {
            "attack_layers": attack not in ("pgd", "autoattack", "none") and not costs,
            "dknn_layers": not costs and not full["metric"].startswith("dnn_"),
        }
        for name in needed:
            if needed[name] and not full[name]:
                raise ConfigError("no layers given; set `layers` (or `attack_layers` and `dknn_layers`)")
        full["classifier_similarity"] = full["classifier_similarity"] or full["similarity"]
        if default.max_training_seeds:
            full["training_seeds"] = min(full["training_seeds"], default.max_training_seeds)
        if full["omega"] is not None and (attack != "ask" or len(full["attack_layers"]) != 2):
            raise ConfigError("`omega` weighs two layers that ASK-Atk attacks; set it where `layers` are two")
        if isinstance(full["step_size"], str):
            full["step_size"] = full["eps"] / int(full["step_size"].removeprefix("eps/"))
        return full

    def dataset(self, name: str) -> tuple[str, DatasetConfig, StandIn]:
        """Name and configuration of a data set or of its stand-in, and how that scales settings."""
        scale = self.config.stand_ins.get(name) or StandIn(dataset=name)
        actual = scale.dataset
        if actual not in self.config.datasets:
            known = ", ".join(self.config.datasets)
            raise ConfigError(f"unknown dataset {actual!r}; known: {known}; add it to `datasets`")
        return actual, self.config.datasets[actual], scale

    def label(self, name: str) -> str:
        """A data set's name in tables, with that of the paper's data set which it stands in for."""
        label = self.dataset(name)[1].label
        original = self.config.datasets.get(name)
        return f"{label} (for {original.label})" if name in self.config.stand_ins and original else label

    def label_of(self, name: str) -> str:
        """A data set's own name, with those of the paper's that it stands in for."""
        replaced = [known for known, stand_in in self.config.stand_ins.items() if stand_in.dataset == name]
        originals = [self.config.datasets[known].label for known in replaced if known in self.config.datasets]
        dataset = self.config.datasets[name]
        if not as_published(name, dataset):
            originals.append(f"the published {PUBLISHED[name].title}")
        return f"{dataset.label} (in place of {' and '.join(originals)})" if originals else dataset.label

    def replaced(self) -> dict[str, StandIn]:
        """Stand-ins by name of the paper's data set; one that is of another source, or size, stands in for itself."""
        others = {
            name: StandIn(dataset=name)
            for name, dataset in self.config.datasets.items()
            if not as_published(name, dataset)
        }
        return others | self.config.stand_ins

    def is_trained(self, model: str) -> bool:
        """Whether a model is trained here."""
        return model in self.config.models and self.config.models[model].base in ("at", "trades")

    def is_raw(self, model: str) -> bool:
        """Whether a model is the pixels themselves."""
        return model in self.config.models and self.config.models[model].base == "none"

    def features(self, dataset: str, settings: DatasetConfig, model: str) -> FeatureSpec:
        """The feature function of a model on a data set; raises ConfigError if there is no network to train."""
        key = key_of(dataset, spec_of(settings))
        if self.is_raw(model):
            return FeatureSpec(dataset=dataset, data=key, model=model, network=None)
        method, place = self.config.models[model], f"datasets.{dataset}.network"
        network = settings.network
        if method.base == "external":
            place = f"models.{model}"
            network = NetworkSpec(**{name: getattr(method, name) for name in OwnModule.model_fields})
            if method.weights and not Path(method.weights).expanduser().is_file():
                raise ConfigError(f"{place}.weights: no file {method.weights}; mend the path, or put the file there")
        if network is None:
            raise ConfigError(
                f"model {model!r} needs a network on dataset {dataset!r}; set `{place}` or use model 'raw'"
            )
        read = dict.fromkeys(layers_of(method), f"models.{model}.{method.regulariser}.layer")
        own = method.training if method.training and "selection" in method.training.model_fields_set else None
        if method.base != "external" and (own or settings.training).selection != "holdout":
            read["conv4"] = f"{f'models.{model}' if own else f'datasets.{dataset}'}.training.selection: holdout"
        for layer, where in read.items():
            if layer not in network.names:
                known = ", ".join(network.names) or "none"
                raise ConfigError(
                    f"training of model {model!r} reads layer {layer!r}, and {place} has {known};"
                    f" set `{where}` or `{place}.layers`"
                )
        try:
            code = own_code(network.factory) if network.factory else None
        except ImportError as error:
            raise ConfigError(f"{place}.factory: {error}") from None
        return FeatureSpec(dataset=dataset, data=key, model=model, network=network, code=code)

    def check(self, asked: dict[str, Any], dataset: str, settings: DatasetConfig, features: FeatureSpec) -> None:
        """Raises ConfigError for layers, attacks and K that the model or its references do not have."""
        layers = {*(asked["attack_layers"] or ()), *(asked["dknn_layers"] or ())}
        if features.network is None and (
            asked["attack"] in ("pgd", "autoattack") or asked["metric"].startswith("dnn_")
        ):
            raise ConfigError("model 'raw' has no network to attack or to classify by; take another model")
        if features.network is None and layers != {"input"}:
            raise ConfigError(f"model 'raw' has the layer 'input' only, got {sorted(layers)}; remove `layers`")
        known = features.network.names if features.network else ("input",)
        if unknown := sorted(layers - set(known)):
            only = " ('input' is model 'raw' only)" if unknown[0] == "input" else ""
            raise ConfigError(
                f"model {features.model!r} has no layer {unknown[0]!r}{only}; choose from {', '.join(known) or 'none'}"
            )
        if asked["tau"] is not None and asked["attack"] != "ask":
            raise ConfigError(
                f"tau is ASK-Atk's, not attack {asked['attack']!r}'s; remove it, or set it where `attack: ask`"
            )
        for name in ("eps", "step_size"):
            if asked["attack"] != "none" and not asked[name] > 0:
                raise ConfigError(
                    f"{name} = {asked[name]:g}, which is no attack; give n of 255 above 0, or `attack: none`"
                )
        per_class = asked["references_per_class"] or settings.references_per_class
        largest = max(asked["k_in"], asked["k_out"], asked["classifier_k"])
        if largest > per_class:
            raise ConfigError(
                f"K = {largest} exceeds the {per_class} references a class of dataset {dataset!r};"
                f" lower K or raise `datasets.{dataset}.references_per_class`"
            )


def as_published(name: str, dataset: DatasetConfig) -> bool:
    """Whether a data set, if it bears the name of one of the paper's, is that: its published files, at its size."""
    return name not in SIDES or (dataset.source, dataset.image_size) == (name, SIDES[name])


def leave_out(artifact: ArtifactConfig, names: set[str]) -> ArtifactConfig | None:
    """An artifact without the rows, columns, lines and panels of data sets, models and parts; None: nothing left."""

    def left_out(level: Settings) -> bool:
        return not names.isdisjoint({level.dataset, level.model, level.baseline, getattr(level, "part", None)})

    def kept(axes: Iterable[Axis]) -> tuple[Axis, ...] | None:
        values = ((axis, tuple(one for one in axis.values if not left_out(one))) for axis in axes)
        found = [axis.model_copy(update={"values": some}) for axis, some in values]
        return tuple(found) if all(axis.values for axis in found) else None

    if left_out(artifact.settings):
        return None
    rows, columns = kept(artifact.rows), kept(artifact.columns)
    panels = []
    for panel in artifact.panels:
        lines = kept([panel.lines])
        if lines and not left_out(panel.settings):
            panels.append(panel.model_copy(update={"lines": lines[0]}))
    if rows is None or columns is None or bool(panels) != bool(artifact.panels):
        return None
    return artifact.model_copy(update={"rows": rows, "columns": columns, "panels": tuple(panels)})


def product(axes: Iterable[Axis]) -> list[tuple[AxisValue, ...]]:
    """Every combination of the axes' values, the last axis turning fastest."""
    return list(itertools.product(*(axis.values for axis in axes)))


def merge_levels(levels: Iterable[Settings]) -> dict[str, Any]:
    """Settings given on any level, inner levels winning."""
    merged: dict[str, Any] = {}
    for level in levels:
        merged |= {k: v for k, v in level.model_dump(exclude={"label", "part"}).items() if v is not None}
    return merged
