"""The search of :mod:`ask.knn.search` by faiss: Flat (the same ids) or, as an explicit choice, IVF (approximate).

faiss-cpu and faiss-gpu share the module name ``faiss``; where the installed one has GPU support and the
references are on a GPU, the indexes live there. Flat finds candidates, whose near ties are then ranked in float64 as
:class:`ask.knn.search.ExactSearch` ranks them, so that ids are the same.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ask.knn.search import ExactSearch, Neighbours
from ask.knn.similarity import Similarity


class FaissSearch(ExactSearch):
    """Neighbours under cosine similarity or l2 distance by faiss; arguments as :class:`ask.knn.search.ExactSearch`.

    Args:
        approximate: IVF (about 4 sqrt(n) lists, one sixteenth of them probed) instead of Flat, for the
            search over all references; the search class by class is always exact.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        n_classes: int | None = None,
        similarity: Similarity = "cosine",
        approximate: bool = False,
    ) -> None:
        super().__init__(features.float(), labels, n_classes=n_classes, similarity=similarity)
        self._lists = self._index(self._compared, True) if approximate else None
        self._by_class: list[Any] = []

    def _nearest(self, queries: Tensor, k: int, k_class: int) -> Neighbours:
        """As :class:`ask.knn.search.Search`."""
        if not self._lists:
            return super()._nearest(queries, k, k_class)
        found = super()._nearest(queries, 0, k_class)
        scores, ids = self._ask(self._lists, queries, k)
        if (ids < 0).any():
            raise ValueError(f"the approximate index found fewer than {k} neighbours of a query; use backend 'faiss'")
        distances = 1 - scores if self.similarity == "cosine" else scores.clamp_min(0).sqrt()
        return Neighbours(self.order[ids], distances, found.class_indices, found.class_distances)

    def _blocks(self, queries: int) -> list[tuple[int, int]]:  # noqa: ARG002  # of the class that this one extends
        """Each class by itself, an index each; their best are the candidates of the search over all references."""
        return [(own, own + 1) for own in range(self.n_classes)]

    def _best(self, queries: Tensor, own: int, count: int) -> tuple[Tensor, Tensor]:
        """As :class:`ask.knn.search.ExactSearch`."""
        if not self._by_class:
            self._by_class = [self._index(self._compared[start:end], False) for start, end in self.bounds]
        scores, ids = self._ask(self._by_class[own], queries, count)
        if self.similarity == "cosine":
            return scores - 0.5, ids
        return (queries.square().sum(1, keepdim=True) - scores) / 2, ids
