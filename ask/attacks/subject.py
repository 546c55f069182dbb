"""What attacks have in common beside the ascent: what they are aimed at, and how they look for neighbours."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ask.attacks.linf import (
    Ascent,
    FeatureFunction,
    FeatureLoss,
    SignSteps,
    StepRule,
    ascend,
    fitting_batch,
    random_start,
)
from ask.attacks.validation import check_devices, check_images, check_labels, check_layers
from ask.knn.search import Neighbours, Search


@dataclass(frozen=True)
class Subject:
    """A model under attack, in one trial."""

    features: FeatureFunction
    references: Mapping[str, Search]
    """Reference set at each attacked layer, under the attack's similarity."""
    network: nn.Module | None = None
    """The network whose features these are; None on raw pixels."""


class Settings(Protocol):
    """What every attack's configuration says; ``eps`` and ``step_size`` in [0, 1]."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Attacked layers."""

    @property
    def eps(self) -> float:
        """l-infinity radius."""

    @property
    def step_size(self) -> float:
        """Sign step."""

    @property
    def steps(self) -> int:
        """Gradient steps."""

    @property
    def batch_size(self) -> int | None:
        """Images attacked at a time; None: :func:`ask.attacks.linf.fitting_batch`."""


C = TypeVar("C", bound=Settings)


class ReferenceAttack(ABC, Generic[C]):
    """An attack on nearest-neighbour search: its checks, the search for the clean images' neighbours, the ascent.

    A subclass says what to ascend (:meth:`losses`) and how many neighbours that takes (``k``, ``k_class``).

    Args:
        features: e.g. ``network.features``, or :func:`ask.attacks.identity_features` for raw pixels; its network
            should be in evaluation mode with parameter gradients off (:func:`ask.attacks.linf.frozen`).
        references: search over the reference set at each attacked layer (:class:`ask.knn.search.ExactSearch`),
            under the similarity that the loss shall use.
        config: settings.
        generator: draws the random start, and whatever else the attack draws.
        on_gradient: called with every step's gradient, for diagnostics.
    """

    k = 0
    """Nearest references of all that it wants of clean images."""
    k_class = 0
    """Nearest references of each class that it wants of clean images."""

    def __init__(
        self,
        features: FeatureFunction,
        references: Mapping[str, Search],
        config: C,
        *,
        generator: torch.Generator,
        on_gradient: Callable[[Tensor], None] | None = None,
    ) -> None:
        check_layers(config.layers, references)
        self.features = features
        self.references = {layer: references[layer] for layer in config.layers}
        self.config, self.generator, self.on_gradient = config, generator, on_gradient
        self.n_classes = next(iter(self.references.values())).n_classes

    def __call__(self, images: Tensor, labels: Tensor, *, neighbours: Mapping[str, Neighbours] | None = None) -> Tensor:
        """Adversarial images.

        Args:
            images: (batch, ...) in [0, 1].
            labels: true classes (batch,), int64.
            neighbours: of the clean images at each layer, at least ``k`` of all and ``k_class`` of each class;
                searched for when not given, and never refreshed.

        Returns:
            Tensor like ``images``, within ``eps`` of it and in [0, 1].
        """
        return ascend([self.ascent(images, labels, neighbours=neighbours)])[0]

    def ascent(self, images: Tensor, labels: Tensor, *, neighbours: Mapping[str, Neighbours] | None = None) -> Ascent:
        """The attack on these images, ready to climb; arguments as in a call."""
        home = next(iter(self.references.values())).features.device
        check_devices(images, labels, home, "the references")
        check_images(images)
        check_labels(labels, len(images), self.n_classes)
        config = self.config
        losses = self.losses(neighbours or self.search(images), labels)
        return Ascent(
            images=images,
            start=random_start(images, config.eps, self.generator),
            features=self.features,
            layers=self.layers,
            losses=losses,
            eps=config.eps,
            steps=config.steps,
            rule=self.rule(),
            batch_size=config.batch_size or fitting_batch(images, self.bytes_an_image()),
            on_gradient=self.on_gradient,
        )

    def search(self, images: Tensor) -> dict[str, Neighbours]:
        """Neighbours of clean images (batch, ...) at each layer."""
        with torch.no_grad():
            found = self.features(images, tuple(self.references))
        return {
            layer: search.search(found[layer], k=self.k, k_class=self.k_class)
            for layer, search in self.references.items()
        }

    @abstractmethod
    def losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """What a part of the images ascends, from all images' neighbours by layer and true classes (batch,).

        That is a function of the part's features at :attr:`layers`, which must not mix images.
        """

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers whose features the loss reads."""
        return self.config.layers

    def rule(self) -> StepRule:
        """How the ascent steps: by sign."""
        return SignSteps(self.config.step_size)

    def bytes_an_image(self) -> int:
        """Memory that the references of one image take during the ascent."""
        return 0


def neighbour_classes(search: Search, neighbours: Neighbours, k: int) -> Tensor:
    """Classes (queries, k) of the k nearest references."""
    rows = search.rows(neighbours.indices[:, :k].contiguous())
    return torch.bucketize(rows, search.counts.cumsum(0), right=True)


def leave_one_out(search: Search, k: int, every: int = 1) -> tuple[Tensor, Tensor]:
    """Nearest other references of every so-manieth reference.

    Returns:
        Distances and classes, both (references / every, k), nearest first. Distances as in :class:`Neighbours`.
    """
    rows = torch.arange(0, len(search.features), every, device=search.features.device)
    found = search.search(search.features[rows], k=k + 1)
    # Itself, or where a duplicate has taken its place, the last.
    own = search.rows(found.indices) == rows.unsqueeze(1)
    own[:, -1] |= ~own.any(1)
    kept = ~own
    distances = found.distances[kept].reshape(-1, k)
    classes = neighbour_classes(search, found, k + 1)[kept].reshape(-1, k)
    return distances, classes
