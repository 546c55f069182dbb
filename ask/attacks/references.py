"""What attacks on nearest-neighbour search have in common: what they are aimed at, and how they look for neighbours."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from ask.attacks.linf import Ascent, FeatureFunction, FeatureLoss, GradientAttack, fitting_batch
from ask.attacks.validation import check_labels, checked, positions
from ask.config.attacks import ReferenceAttackConfig
from ask.knn.search import Neighbours, Search
from ask.models.hooks import check_features, evaluating

if TYPE_CHECKING:
    from ask.knn.classifier import DkNN

R = TypeVar("R", bound=ReferenceAttackConfig)
T = TypeVar("T")


def identity_features(images: Tensor, layers: Sequence[str] = ("input",)) -> dict[str, Tensor]:
    """The identity feature: raw pixels (paper, VI-A-g), whatever the layer is called."""
    return {layer: images.flatten(1) for layer in layers}


@dataclass(frozen=True)
class Subject:
    """A model under attack, in one trial."""

    features: FeatureFunction
    references: Mapping[str, Search]
    """Reference set at each attacked layer, under the attack's similarity."""
    network: nn.Module | None = None
    """The network whose features these are; None on raw pixels."""


class ReferenceAttack(GradientAttack[R]):
    """An attack on nearest-neighbour search: its checks, the search for the clean images' neighbours, the ascent.

    A subclass says what to ascend (:meth:`losses`) and how many neighbours that takes (``k``, ``k_class``).

    Args:
        features: a fitted :class:`ask.knn.classifier.DkNN`, whose features are meant. Or a function, e.g.
            ``network.features``, or :func:`ask.attacks.identity_features` for raw pixels.
        references: search over the reference set at each attacked layer (:class:`ask.knn.search.ExactSearch`),
            under the similarity that the loss shall use; or the fitted DkNN whose references are meant. None: those of
            the DkNN given as ``features``.
        config: all settings, or
        options: single ones, e.g. ``eps=8 / 255``. The attacked layers are then all of the references', a step is
            ``eps / 4``, K is the DkNN's, and where a class has fewer references than an attack wants of it by default,
            it makes do with these for all classes, and warns where others have more. And ``generator``, ``seed`` (0)
            and ``on_gradient``, as :class:`ask.attacks.linf.GradientAttack`.

    The labels that it takes are those given to the DkNN's ``fit``, as whole numbers. Where these are no numbers, and
    for references made without a DkNN, they are positions: of the class in ``classes_``, or 0, 1, ...
    """

    def __init__(
        self,
        features: "FeatureFunction | DkNN",
        references: "Mapping[str, Search] | DkNN | None" = None,
        config: R | None = None,
        **options: Any,
    ) -> None:
        known = [given for given in (references, features) if is_dknn(given)]
        self.classifier: DkNN | None = known[0] if known else None
        features, references = _aim(features, references)
        draws = {name: options.pop(name) for name in ("generator", "seed", "on_gradient") if name in options}
        config = self.configured(config, options, **({} if config else self._defaults(references, options)))
        missing = [layer for layer in config.layers if layer not in references]
        if missing:
            raise ValueError(f"no references for attacked layers {missing}; given: {sorted(references)}")
        super().__init__(features, config.layers, config, **draws)
        self.references = {layer: references[layer] for layer in config.layers}
        self.types = {layer: search.features.dtype for layer, search in self.references.items()}
        first, *others = self.references.values()
        self.n_classes, self.classes = first.n_classes, first.classes
        if self.n_classes < 2:
            raise ValueError("the references are all of one class; an attack needs at least two")
        if any(_names(search) != _names(first) for search in others):
            raise ValueError("the attacked layers' references have different classes; fit them on the same labels")

    def _defaults(self, references: Mapping[str, Search], given: Container[str]) -> dict[str, Any]:
        """Settings that follow from what is attacked."""
        fields = self.config_type.model_fields
        counts = [int(count) for search in references.values() for count in search.counts]
        fewest, most = min(counts), max(counts)
        found: dict[str, Any] = {name: fields[name].default for name in _OF_EACH_CLASS if name in fields}
        if self.classifier is not None:
            found |= {name: self.classifier.n_neighbors for name in ("k", "k_in", "k_out") if name in fields}
        within = {name: min(found[name], fewest) for name in _OF_EACH_CLASS if name in found}
        if cut := [name for name in within if name not in given and fewest < min(found[name], most)]:
            says = f"a class has {fewest} references, so {', '.join(cut)} fall to {fewest} for all classes"
            warnings.warn(f"{says}, which weakens the attack on all; give more of it", RuntimeWarning, stacklevel=3)
        return {"layers": tuple(references), **found, **within}

    @classmethod
    def build(cls, config: R, subject: Subject, *, blocks: object = None, **draws: Any) -> Self:  # noqa: ARG003  # AdvKnn's
        """The attack of a cell, from its complete configuration; ``draws`` as in the constructor."""
        return cls(subject.features, subject.references, config, **draws)

    def ascent(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        neighbours: Mapping[str, Neighbours] | None = None,
        targeted: bool = False,
    ) -> Ascent:
        """The attack on these images, ready to climb.

        Args:
            images: (batch, ...) in [0, 1], of any precision.
            labels: true classes (batch,), int64: labels given to ``fit``, or positions (see the class).
            neighbours: of the clean images at each layer, at least ``k`` of all and ``k_class`` of each class;
                searched for when not given, and never refreshed.
            targeted: labels are classes to lead the images to instead.
        """
        home = next(iter(self.references.values())).features.device
        images, labels = checked(images, labels, home, "the references")
        if self.classes is not None:
            labels = positions(labels, len(images), self.classes)
        check_labels(labels, len(images), self.n_classes)
        return self.ready(images, labels, neighbours or self.search(images), targeted)

    def ready(self, images: Tensor, labels: Tensor, neighbours: Mapping[str, Neighbours], targeted: bool) -> Ascent:
        """As :meth:`ascent`, of images that are checked, with positions of their classes as labels."""
        losses = (self.targeted_losses if targeted else self.losses)(neighbours, labels)
        return Ascent(self, images, self.start(images), losses)

    def search(self, images: Tensor) -> dict[str, Neighbours]:
        """Neighbours of clean images (batch, ...) at each layer."""
        size = self.config.batch_size or fitting_batch(images, 0)
        with torch.no_grad(), evaluating(self.features):
            parts = [self.features(part, tuple(self.references)) for part in images.split(size)]
        return {
            layer: search.search(torch.cat([part[layer] for part in parts]), k=self.k, k_class=self.k_class)
            for layer, search in self.references.items()
        }

    @abstractmethod
    def losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """What a part of the images ascends, from all images' neighbours by layer and true classes (batch,).

        That is a function of the part's features at ``layers``, which must not mix images.
        """

    def targeted_losses(self, neighbours: Mapping[str, Neighbours], labels: Tensor) -> Callable[[slice], FeatureLoss]:
        """As :meth:`losses`, for classes to lead the images to: the loss of these as true classes, descended."""
        return descended(self.losses(neighbours, labels))


def descended(climbed: Callable[[slice], FeatureLoss]) -> Callable[[slice], FeatureLoss]:
    """Losses whose ascent is the descent of the given ones."""

    def make_loss(part: slice) -> FeatureLoss:
        loss = climbed(part)
        return lambda features: -loss(features)

    return make_loss


_OF_EACH_CLASS = ("k_in", "k_out", "guides")
"""Settings that say how many references of a class an attack wants."""


def is_dknn(given: object) -> "TypeGuard[DkNN]":
    """Whether a DkNN is given where features or references may be; without importing its class, and scikit-learn."""
    return hasattr(given, "kneighbors") and hasattr(given, "backend")


def _aim(
    features: "FeatureFunction | DkNN", references: "Mapping[str, Search] | DkNN | None"
) -> tuple[FeatureFunction, Mapping[str, Search]]:
    """Feature function and reference sets, of a fitted DkNN where one is given."""
    if references is None:
        if not is_dknn(features):
            raise ValueError("references are missing; give them, or a fitted DkNN instead of features")
        references = features
    if is_dknn(references):
        if not hasattr(references, "search_"):
            raise ValueError("this DkNN is not fitted yet; call fit(X, y) first")
        references = references.search_
    if not isinstance(references, Mapping):
        raise ValueError(f"references must be a fitted DkNN, or searches by layer, got {references!r}")
    if not is_dknn(features):
        check_features(features)
    return (features.features or identity_features) if is_dknn(features) else features, references


def _names(search: Search) -> list[int]:
    return list(range(search.n_classes)) if search.classes is None else search.classes.tolist()


def calibrated(name: str, value: T | None) -> T:
    """A setting that may be None until it is calibrated; raises ValueError while it is."""
    if value is None:
        raise ValueError(f"{name} is yet to be calibrated; give a value")
    return value


def neighbour_classes(search: Search, neighbours: Neighbours, k: int) -> Tensor:
    """Classes (queries, k) of the k nearest references."""
    rows = search.rows(neighbours.indices[:, :k].contiguous())
    return torch.bucketize(rows, search.counts.cumsum(0), right=True)


def leave_one_out(search: Search, k: int, every: int = 1) -> tuple[Tensor, Tensor]:
    """Nearest other references of every so-manieth reference.

    Returns:
        Distances and classes, both (references / every, k), nearest first. Distances as in :class:`Neighbours`.
    """
    if k >= len(search.features):
        others = len(search.features) - 1
        raise ValueError(f"k={k} exceeds the {others} references beside each; lower k or add references")
    rows = torch.arange(0, len(search.features), every, device=search.features.device)
    found = search.search(search.features[rows], k=k + 1)
    # Itself, or where a duplicate has taken its place, the last.
    own = search.rows(found.indices) == rows.unsqueeze(1)
    own[:, -1] |= ~own.any(1)
    kept = ~own
    distances = found.distances[kept].reshape(-1, k)
    classes = neighbour_classes(search, found, k + 1)[kept].reshape(-1, k)
    return distances, classes
