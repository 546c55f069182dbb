"""What attacks have in common beside the ascent: what they are aimed at, and how they look for neighbours."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..knn import Neighbours, Search

FeatureFunction = Callable[[Tensor, Sequence[str]], Mapping[str, Tensor]]
"""Maps images and layer names to features (batch, dimensions) by layer, differentiably."""


@dataclass(frozen=True)
class Subject:
    """A model under attack, in one trial."""

    features: FeatureFunction
    references: Mapping[str, Search]
    """Reference set at each attacked layer, under the attack's similarity."""
    network: nn.Module | None = None
    """The network whose features these are; None on raw pixels."""


def search_clean(
    features: FeatureFunction, references: Mapping[str, Search], images: Tensor, *, k: int = 0, k_class: int = 0
) -> dict[str, Neighbours]:
    """Neighbours of clean images (batch, ...) at each layer: ``k`` of all references, ``k_class`` of each class."""
    with torch.no_grad():
        found = features(images, tuple(references))
    return {layer: search.search(found[layer], k=k, k_class=k_class) for layer, search in references.items()}


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
