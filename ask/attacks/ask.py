"""ASK-Atk (paper, IV and Algorithm 1): ascend the ASK loss towards the nearest references of other classes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from ask.attacks.linf import FeatureFunction, FeatureLoss
from ask.attacks.subject import ReferenceAttack, Subject
from ask.attacks.validation import check_linf
from ask.config.jobs import AttackSpec
from ask.knn.search import Neighbours, Search
from ask.losses.ask import ask_margin, class_wise, scale_free_loss

Variant = Literal["non-targeted", "targeted", "random-sampling"]


def identity_features(images: Tensor, layers: Sequence[str] = ("input",)) -> dict[str, Tensor]:
    """The identity feature: raw pixels (paper, VI-A-g), whatever the layer is called."""
    return {layer: images.flatten(1) for layer in layers}


@dataclass(frozen=True, kw_only=True)
class ASKAttackConfig:
    """Settings of ASK-Atk; ``eps`` and ``step_size`` in [0, 1]. Defaults: paper, App. D-e."""

    layers: tuple[str, ...]
    """Attacked layers."""
    eps: float = 8 / 255
    """l-infinity radius."""
    step_size: float = 2 / 255
    """Sign step (kappa); silent in the paper, from the released code."""
    steps: int = 20
    """Gradient steps."""
    k_in: int = 5
    """In-class references (K+)."""
    k_out: int = 5
    """References of each other class (K-)."""
    variant: Variant = "non-targeted"
    """``targeted``: only the wrong class nearest to the clean image enters the loss; ``random-sampling``:
    out-of-class references are drawn uniformly instead of being the nearest (App. E)."""
    random_in_class: bool = False
    """With ``random-sampling``: draw the in-class references too."""
    tau: Mapping[str, float] | float = 0.03
    """Temperature, by layer or for all."""
    omega: Mapping[str, float] = field(default_factory=dict)
    """Layer weights; default: all the same. Only their ratios matter."""
    batch_size: int | None = None
    """Images attacked at a time; default: :func:`ask.attacks.linf.fitting_batch`."""

    def __post_init__(self) -> None:
        check_linf(self.eps, self.step_size, self.steps)
        if not self.layers:
            raise ValueError("layers is empty; name at least one attacked layer")
        if min(self.k_in, self.k_out) < 1:
            raise ValueError(f"k_in={self.k_in} and k_out={self.k_out} must be at least 1")
        for layer in self.layers:
            if not self.temperature(layer) > 0:
                raise ValueError(f"tau={self.temperature(layer)} of {layer} must be positive")

    def temperature(self, layer: str) -> float:
        """tau of one layer."""
        return self.tau if isinstance(self.tau, int | float) else self.tau[layer]

    def weights(self) -> dict[str, float]:
        """omega of every attacked layer, summing to 1."""
        given = {layer: self.omega.get(layer, 0.0 if self.omega else 1.0) for layer in self.layers}
        total = sum(given.values())
        if total <= 0 or min(given.values()) < 0:
            raise ValueError(f"omega={dict(self.omega)} must give {self.layers} non-negative weights, not all zero")
        return {layer: weight / total for layer, weight in given.items()}


class ASKAttack(ReferenceAttack[ASKAttackConfig]):
    """ASK-Atk on any differentiable feature function.

    >>> attack = ASKAttack(
    ...     identity_features,
    ...     {"input": ExactSearch(x, y, similarity="l2")},
    ...     ASKAttackConfig(layers=("input",)),
    ...     generator=torch.Generator().manual_seed(0),
    ... )
    >>> adversarial = attack(images, labels)
    """

    def __init__(
        self, features: FeatureFunction, references: Mapping[str, Search], config: ASKAttackConfig, **draws: Any
    ) -> None:
        super().__init__(features, references, config, **draws)
        self.k_class = max(config.k_in, config.k_out)

    def losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """As :class:`ReferenceAttack`."""
        config = self.config
        chosen = {layer: self._choose(neighbours[layer], labels, layer) for layer in config.layers}
        targets = nearest_wrong_class(neighbours, labels, config.k_out) if config.variant == "targeted" else None

        def make_loss(part: slice) -> FeatureLoss:
            own = {layer: (ids[part], weights[part]) for layer, (ids, weights) in chosen.items()}
            return self.loss(labels[part], own, None if targets is None else targets[part])

        return make_loss

    def loss(
        self,
        labels: Tensor,
        chosen: Mapping[str, tuple[Tensor, Tensor]],
        targets: Tensor | None = None,
    ) -> FeatureLoss:
        """What a batch ascends (:func:`ask.losses.ask.scale_free_loss`).

        Args:
            labels: true classes (batch,).
            chosen: reference rows and their weights by layer, both (batch, classes, k).
            targets: classes aimed at (batch,), for the targeted variant.
        """
        similarities = {
            layer: class_wise(
                self.references[layer].features,
                ids,
                weights=weights,
                similarity=self.references[layer].similarity,
                tau=self.config.temperature(layer),
            )
            for layer, (ids, weights) in chosen.items()
        }
        layers, omega = self.layers, self.config.weights()

        def loss(features: Mapping[str, Tensor]) -> Tensor:
            margins = [ask_margin(similarities[layer](features[layer]), labels, targets) for layer in layers]
            return scale_free_loss(margins, [omega[layer] for layer in layers])

        return loss

    @property
    def layers(self) -> tuple[str, ...]:
        """The attacked layers that weigh anything."""
        omega = self.config.weights()
        return tuple(layer for layer in self.config.layers if omega[layer] > 0)

    def _choose(self, neighbours: Neighbours, labels: Tensor, layer: str) -> tuple[Tensor, Tensor]:
        """Reference rows (batch, classes, k) into the sorted reference set, and their weights."""
        config, search = self.config, self.references[layer]
        k = max(config.k_in, config.k_out)
        ids = search.rows(neighbours.class_indices[:, :, :k])
        is_own = torch.nn.functional.one_hot(labels, self.n_classes).bool().unsqueeze(2)
        if config.variant == "random-sampling":
            drawn = draw_references(search.counts, len(labels), k, self.generator).to(ids.device)
            ids = drawn if config.random_in_class else torch.where(is_own, ids, drawn)
        place = torch.arange(k, device=ids.device)
        weights = torch.where(is_own, (place < config.k_in) / config.k_in, (place < config.k_out) / config.k_out)
        return ids, weights.to(search.features.dtype)

    def bytes_an_image(self) -> int:
        """As :class:`ReferenceAttack`."""
        total = 0
        for search in self.references.values():
            vectors = 1 if search.similarity == "cosine" else self.k_class
            total += 4 * self.n_classes * vectors * search.features.shape[1]
        return total


def build(spec: AttackSpec, subject: Subject, setting: Mapping[str, Any], **draws: Any) -> ASKAttack:
    """The attack of a cell, whose eps and step size are n of 255; ``setting`` holds tau and omega by layer."""
    config = ASKAttackConfig(
        layers=spec.layers,
        eps=spec.eps / 255,
        step_size=spec.step_size / 255,
        steps=spec.steps,
        k_in=spec.k_in,
        k_out=spec.k_out,
        variant=cast(Variant, spec.variant),
        tau=setting["tau"],
        omega=setting["omega"],
    )
    return ASKAttack(subject.features, subject.references, config, **draws)


def nearest_wrong_class(neighbours: Mapping[str, Neighbours], labels: Tensor, k: int) -> Tensor:
    """The targeted variant's class (batch,): the wrong class at the least mean distance to the clean image.

    The paper (App. E) leaves open over which points and layers; here over the k nearest references
    of each class, averaged over layers after division by each layer's mean distance.
    """
    total = torch.zeros(())
    for found in neighbours.values():
        distance = found.class_distances[:, :, :k].mean(2)
        total = total.to(distance) + distance / distance.mean().clamp_min(1e-12)
    return total.scatter(1, labels.unsqueeze(1), float("inf")).argmin(1)


def draw_references(counts: Tensor, batch: int, k: int, generator: torch.Generator) -> Tensor:
    """Rows (batch, classes, k) of class-sorted references, k a class, uniformly and without replacement."""
    drawn = []
    for start, count in zip((counts.cumsum(0) - counts).tolist(), counts.tolist(), strict=True):
        # Floyd's sampling: place j is uniform below j + 1, or j itself when that is taken.
        ids = torch.full((batch, k), -1, dtype=torch.int64)
        for place, last in enumerate(range(count - k, count)):
            pick = torch.randint(last + 1, (batch,), generator=generator)
            taken = (ids[:, :place] == pick.unsqueeze(1)).any(1)
            ids[:, place] = torch.where(taken, last, pick)
        drawn.append(ids + start)
    return torch.stack(drawn, 1)
