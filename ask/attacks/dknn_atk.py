"""DkNN-Atk (Sitawarin and Wagner, 2019 and 2020): pull the features towards guides of one wrong class.

Guides are a wrong class's references nearest to the clean image. With d the Euclidean distance between the features
(of unit length under cosine similarity) and a guide, and eta the distance at which a guide counts as a neighbour,

    maximise  - sum_l mean_j sigmoid(alpha (d_lj / eta_l - 1)),

the soft count of guides that are neighbours. The default follows a later implementation by an author of the ASK
paper; the options hold the original and its successor.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ask.attacks.linf import BoxSteps, FeatureFunction, FeatureLoss, StepRule
from ask.attacks.subject import ReferenceAttack, Subject, leave_one_out
from ask.attacks.validation import check_linf
from ask.config.jobs import AttackSpec
from ask.knn.search import Neighbours, Search
from ask.knn.similarity import negative_distance, unit


@dataclass(frozen=True, kw_only=True)
class DkNNAttackConfig:
    """Settings of DkNN-Atk; ``eps`` and ``step_size`` in [0, 1]."""

    layers: tuple[str, ...]
    """Attacked layers."""
    eps: float = 8 / 255
    """l-infinity radius."""
    steps: int = 20
    """Gradient steps."""
    optimizer: Literal["adam", "rmsprop", "sign"] = "adam"
    """``adam`` and ``rmsprop`` move the tanh variable of the box; ``sign`` is projected sign-gradient ascent."""
    learning_rate: float = 0.1
    """Of ``adam`` and ``rmsprop``."""
    step_size: float = 2 / 255
    """Step of ``sign``."""
    k: int = 5
    """The threshold eta is the mean distance of references to their k-th nearest other reference (a fifth of them)."""
    guides: int = 15
    """Guides m; with ``relu``, half of them of the true class."""
    alpha: float = 4.0
    """Slope of the sigmoid."""
    loss: Literal["sigmoid", "relu"] = "sigmoid"
    """``relu`` (the successor): push own-class guides beyond the threshold, pull the others within it."""
    threshold: float | None = None
    """A constant eta for every layer instead."""
    relative: bool = True
    """Divide distances by eta; False compares them as they are (the original)."""
    refresh: int | None = None
    """Choose guides anew after so many steps (the successor: 100); None keeps those of the clean image."""
    batch_size: int | None = None
    """Images attacked at a time; default: :func:`ask.attacks.linf.fitting_batch`."""

    def __post_init__(self) -> None:
        check_linf(self.eps, self.step_size, self.steps)
        for name in ("k", "guides", "alpha", "learning_rate", "threshold", "refresh"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive")


class DkNNAttack(ReferenceAttack[DkNNAttackConfig]):
    """DkNN-Atk on any differentiable feature function; arguments as :class:`ReferenceAttack`.

    >>> attack = DkNNAttack(features, references, DkNNAttackConfig(layers=("conv4",)), generator=generator)
    >>> adversarial = attack(images, labels)
    """

    def __init__(
        self, features: FeatureFunction, references: Mapping[str, Search], config: DkNNAttackConfig, **draws: Any
    ) -> None:
        super().__init__(features, references, config, **draws)
        self.k_class = config.guides
        self.thresholds = {
            layer: config.threshold or mean_neighbour_distance(search, config.k)
            for layer, search in self.references.items()
        }

    def losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """As :class:`ReferenceAttack`."""
        guides = self.choose(neighbours, labels)
        return lambda part: self.loss(labels[part], {layer: rows[part] for layer, rows in guides.items()})

    def rule(self) -> StepRule:
        """As :class:`ReferenceAttack`."""
        config = self.config
        return super().rule() if config.optimizer == "sign" else BoxSteps(config.optimizer, config.learning_rate)

    def choose(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> dict[str, Tensor]:
        """Rows (batch, m) of the guides at each layer, all of the wrong class with the least summed mean distance.

        With the ``relu`` loss, the first m // 2 are of the true class and the last m // 2 of that wrong class.
        """
        m = self.config.guides
        total = torch.zeros(())
        for layer, search in self.references.items():
            distance = euclidean(neighbours[layer].class_distances[:, :, :m], search)
            total = total.to(distance) + distance.mean(2)
        wrong = total.scatter(1, labels.unsqueeze(1), float("inf")).argmin(1)
        chosen = {}
        for layer, search in self.references.items():
            rows = search.rows(neighbours[layer].class_indices[:, :, :m].contiguous())
            batch = torch.arange(len(labels), device=rows.device)
            if self.config.loss == "relu":
                half = max(1, m // 2)
                chosen[layer] = torch.cat([rows[batch, labels, :half], rows[batch, wrong, :half]], 1)
            else:
                chosen[layer] = rows[batch, wrong]
        return chosen

    def loss(self, labels: Tensor, guides: Mapping[str, Tensor]) -> FeatureLoss:
        """What a batch with true classes (batch,) ascends, from its guides' rows (batch, m) at each layer."""
        config = self.config
        vectors = {layer: self.references[layer].features[rows] for layer, rows in guides.items()}
        calls = 0

        def loss(features: Mapping[str, Tensor]) -> Tensor:
            nonlocal calls
            if config.refresh and calls and calls % config.refresh == 0:
                found = {
                    layer: search.search(features[layer].detach(), k_class=config.guides)
                    for layer, search in self.references.items()
                }
                for layer, rows in self.choose(found, labels).items():
                    vectors[layer] = self.references[layer].features[rows]
            calls += 1
            return -torch.stack([self._guide_loss(layer, features[layer], vectors[layer]) for layer in vectors]).sum(0)

        return loss

    def _guide_loss(self, layer: str, features: Tensor, guides: Tensor) -> Tensor:
        """Mean over guides (batch, m, dimensions) of what the attack minimises at one layer, (batch,)."""
        config, eta = self.config, self.thresholds[layer]
        if self.references[layer].similarity == "cosine":
            features = unit(features)
        distance = -negative_distance(features.unsqueeze(1), guides, guides.square().sum(2)).squeeze(1)
        excess = distance / eta - 1 if config.relative else distance - eta
        if config.loss == "sigmoid":
            return torch.sigmoid(config.alpha * excess).mean(1)
        half = guides.shape[1] // 2
        return torch.cat([-excess[:, :half], excess[:, half:]], 1).relu().mean(1)

    def bytes_an_image(self) -> int:
        """As :class:`ReferenceAttack`."""
        return sum(4 * self.config.guides * search.features.shape[1] for search in self.references.values())


def euclidean(distances: Tensor, search: Search) -> Tensor:
    """Euclidean distances of (unit) features from a search's distances, which are 1 - cos under cosine."""
    return (2 * distances).clamp_min(0).sqrt() if search.similarity == "cosine" else distances


def mean_neighbour_distance(search: Search, k: int) -> float:
    """Mean Euclidean distance of a fifth of the references to their k-th nearest other reference."""
    distances, _ = leave_one_out(search, k, every=5)
    return float(euclidean(distances[:, -1], search).mean())


def build(spec: AttackSpec, subject: Subject, setting: Mapping[str, Any], **draws: Any) -> DkNNAttack:
    """The attack of a cell, whose eps and step size are n of 255; ``setting`` holds alpha and the learning rate."""
    options = spec.dknn
    assert options is not None
    variants: dict[str, dict[str, Any]] = {
        "adam": {},
        "sign": {"optimizer": "sign"},
        "successor": {"optimizer": "rmsprop", "loss": "relu", "refresh": 100},
    }
    config = DkNNAttackConfig(
        layers=spec.layers,
        eps=spec.eps / 255,
        step_size=spec.step_size / 255,
        steps=spec.steps,
        k=spec.k_in,
        guides=options.guides,
        threshold=options.threshold,
        relative=options.relative,
        **variants[spec.variant],
        **setting,
    )
    return DkNNAttack(subject.features, subject.references, config, **draws)
