"""Votes of the deep k-nearest-neighbour classifier (DkNN; paper, eq. 1 and Appendix D)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ask.knn.search import ExactSearch
from ask.knn.similarity import Similarity


def votes(neighbour_labels: Tensor, n_classes: int) -> Tensor:
    """Votes (queries, classes), int64, of neighbours' labels (queries, k)."""
    counts = neighbour_labels.new_zeros((len(neighbour_labels), n_classes))
    return counts.scatter_add_(1, neighbour_labels, torch.ones_like(neighbour_labels))


def classify(layer_votes: Sequence[Tensor]) -> Tensor:
    """Classes (queries,) with the most votes over all layers (eq. 1); a tie goes to the lowest class."""
    return torch.stack(list(layer_votes)).sum(0).argmax(1)


def make_search(
    features: Tensor, labels: Tensor, similarity: Similarity, backend: str = "exact", *, n_classes: int | None = None
) -> ExactSearch:
    """A reference set by backend name: ``exact``, ``faiss`` or ``faiss-ivf``."""
    if backend == "exact":
        return ExactSearch(features, labels, n_classes=n_classes, similarity=similarity)
    from ask.knn.faiss import FaissSearch

    if backend not in ("faiss", "faiss-ivf"):
        raise ValueError(f"backend={backend!r} is not one of exact, faiss, faiss-ivf")
    approximate = backend == "faiss-ivf"
    return FaissSearch(features, labels, n_classes=n_classes, similarity=similarity, approximate=approximate)


def numbers(classes: NDArray[Any], device: torch.device | None = None) -> Tensor | None:
    """Labels seen in ``fit`` (classes,), int64, by which attacks know the classes.

    None where classes are positions for them: labels 0, 1, ..., or no numbers. Raises ValueError for fractions.
    """
    classes = np.array(classes.tolist()) if classes.dtype.kind == "O" else classes  # numbers of a table's column, maybe
    if classes.dtype.kind not in "biuf":
        return None
    with np.errstate(invalid="ignore"):  # NaN is a fraction, too
        whole = classes.astype(np.int64)
    if (whole != classes).any():
        raise ValueError("Unknown label type: labels are fractions; classes must be whole numbers or strings")
    return None if np.array_equal(whole, np.arange(len(whole))) else torch.from_numpy(whole).to(device)
