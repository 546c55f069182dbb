"""The search of :mod:`ask.knn.search` by faiss: Flat (the same ids) or, as an explicit choice, IVF (approximate).

faiss-cpu and faiss-gpu share the module name ``faiss``; where the installed one has GPU support and the
references are on a GPU, the indexes live there. Flat finds candidates, whose near ties are then ranked in float64 as
:class:`ask.knn.search.ExactSearch` ranks them, so that ids are the same; float64 references, which faiss does not know,
are left to that search.
"""

import math
import os
import time
from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ask.errors import AskError
from ask.knn.search import ExactSearch, Neighbours, common
from ask.knn.similarity import Similarity
from ask.precision import GAIN, once_a_machine, products_read_as


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
        super().__init__(features, labels, n_classes=n_classes, similarity=similarity)
        self._wide = self.features.dtype == torch.float64
        # What would drown distances in float32, of which faiss's vectors are.
        self._carried = common(self._compared, torch.float32) if self._wide and similarity == "l2" else None
        given = self._compared if self._carried is None else self._compared - self._carried
        self._lists = self._index(given, True) if approximate else None
        self._by_class: list[Any] = []

    @products_read_as("ieee")
    def _nearest(self, queries: Tensor, k: int, k_class: int) -> Neighbours:
        """As :class:`ask.knn.search.Search`."""
        if self._lists is None:
            return super()._nearest(queries, k, k_class)
        scores, ids = self._ask(self._lists, queries if self._carried is None else queries - self._carried, k)
        if (ids < 0).any():
            raise ValueError(f"the approximate index found fewer than {k} neighbours of a query; use backend 'faiss'")
        distances = 1 - scores if self.similarity == "cosine" else scores.clamp_min(0).sqrt()
        if not k_class:  # class by class, all references are searched
            none = queries.new_empty(len(queries), self.n_classes, 0)
            return Neighbours(self.order[ids], distances, none.long(), none)
        found = super()._nearest(queries, 0, k_class)
        return Neighbours(self.order[ids], distances, found.class_indices, found.class_distances)

    def _search(
        self, queries: Tensor, k: int, k_class: int, blocks: list[tuple[int, int]], buffer: Tensor
    ) -> tuple[Tensor, ...]:
        """As :class:`ask.knn.search.ExactSearch`, without the scores of all references; of float64 with them."""
        if self._wide:
            return super()._search(queries, k, k_class, blocks, buffer)
        if not self._by_class:
            self._by_class = [self._index(self._compared[start:end], False) for start, end in self.bounds]
        tolerance, squares = self._tolerance(queries), queries.square().sum(1, keepdim=True)
        per_class, per_class_scores, class_ids, class_scores = [], [], [], []
        for index, (start, end) in zip(self._by_class, self.bounds, strict=True):
            best, place = self._ask(index, queries, min(max(k, k_class) + 1, end - start))
            best, ids = best - 0.5 if self.similarity == "cosine" else (squares - best) / 2, place + start
            per_class.append(ids)
            per_class_scores.append(best)
            ids = ids[:, : k_class + 1]
            class_ids.append(self._settle(queries, None, best[:, : k_class + 1], ids, tolerance, k_class, (start, end)))
            class_scores.append(best[:, :k_class])
        stacked = torch.stack(class_ids, 1)
        distances = self._score_distances(queries, torch.cat(class_scores, 1)).reshape(stacked.shape)
        return *self._of_all(queries, per_class, per_class_scores, None, tolerance, k), self.order[stacked], distances

    def _largest(self, norms: Tensor) -> Tensor:
        """As :class:`ask.knn.search.ExactSearch`; faiss' l2 scores hold the query's own square."""
        largest = super()._largest(norms)
        return largest if self.similarity == "cosine" else torch.maximum(largest, norms.square())

    def _index(self, features: Tensor, approximate: bool) -> Any:
        import faiss

        array = np.ascontiguousarray(features.float().cpu().numpy())
        dimensions = array.shape[1]
        flat = faiss.IndexFlatIP(dimensions) if self.similarity == "cosine" else faiss.IndexFlatL2(dimensions)
        index: Any = flat
        if approximate:
            lists = max(1, min(round(4 * len(array) ** 0.5), len(array) // 39))  # faiss wants 39 points a list
            metric = faiss.METRIC_INNER_PRODUCT if self.similarity == "cosine" else faiss.METRIC_L2
            index = faiss.IndexIVFFlat(flat, dimensions, lists, metric)
            index.nprobe = max(1, lists // 16)
            index.train(array)
        if features.device.type == "cuda" and hasattr(faiss, "StandardGpuResources"):
            index = faiss.index_cpu_to_gpu(resources(), features.device.index or 0, index)
        index.add(array)
        return index

    def _ask(self, index: Any, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """An index's ``k`` best scores of each query, and their rows."""
        if not k:
            return queries.new_empty((len(queries), 0)), self.order.new_empty((len(queries), 0))
        scores, ids = index.search(np.ascontiguousarray(queries.float().cpu().numpy()), k)
        return torch.from_numpy(scores).to(queries), torch.from_numpy(ids).to(queries.device)


def searching(device: torch.device) -> str:
    """What a run's searches on a device use, ``exact`` or ``faiss``: ``ASK_SEARCH``, which may be ``auto``.

    Raises AskError where faiss is wanted and not installed.
    """
    wanted, there = os.environ.get("ASK_SEARCH") or "auto", find_spec("faiss") is not None
    if wanted == "faiss" and not there:
        raise AskError("search: faiss, but no faiss is installed; run `make env`, or set search: exact")
    if wanted != "auto":
        return wanted
    rates = once_a_machine("search", device, _measure) if there else {}
    return "faiss" if rates and rates["faiss"] >= GAIN * rates["exact"] else "exact"


def _measure(device: torch.device) -> dict[str, float]:
    """Queries a second of both searches, fewer than a cell has; the best of four rounds in turns."""
    generator = torch.Generator().manual_seed(0)
    references, queries = (torch.rand((count, 2048), generator=generator).to(device) for count in (2000, 500))
    labels = (torch.arange(len(references)) % 10).to(device)
    searches = {"exact": ExactSearch(references, labels), "faiss": FaissSearch(references, labels)}
    best = dict.fromkeys(searches, math.inf)
    for _ in range(4):
        for name, search in searches.items():
            began = time.perf_counter()
            float(search.search(queries, k=5, k_class=5).distances.sum())  # waits for the device
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: len(queries) / seconds for name, seconds in best.items()}


@cache
def resources() -> Any:
    """Of all indexes on GPUs: each such object takes 1.5 GiB of a card for its temporary memory."""
    import faiss

    return faiss.StandardGpuResources()
