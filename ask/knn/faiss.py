"""The search interface of :mod:`ask.knn.search` over faiss: Flat (exact) or, as an explicit choice, IVF (approximate).

faiss-cpu and faiss-gpu share the module name ``faiss``; where the installed one has GPU support and the
references are on a GPU, the index lives there. Flat ranks by float32 scores without the second look of
:class:`ask.knn.search.ExactSearch`, so near ties can come in another order; ties are in faiss's order.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ask.knn.search import Neighbours, Search
from ask.knn.similarity import Similarity


class FaissSearch(Search):
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
        self._global = self._index(self._compared, approximate)
        self._by_class: list[Any] = []

    def _nearest(self, queries: Tensor, k: int, k_class: int) -> Neighbours:
        """As :class:`ask.knn.search.Search`."""
        array = np.ascontiguousarray(queries.detach().cpu().numpy())
        distances, ids = self._ask(self._global, array, k)
        if k_class and not self._by_class:
            self._by_class = [self._index(self._compared[start:end], False) for start, end in self.bounds]
        found = [self._ask(index, array, k_class) for index in self._by_class or [None] * self.n_classes]
        class_ids = torch.stack([own + start for (_, own), (start, _) in zip(found, self.bounds, strict=True)], 1)
        class_distances = torch.stack([own for own, _ in found], 1)
        device = self.features.device
        return Neighbours(
            self.order[ids.to(device)],
            distances.to(device),
            self.order[class_ids.to(device)],
            class_distances.to(device),
        )

    def _index(self, features: Tensor, approximate: bool) -> Any:
        import faiss

        array = np.ascontiguousarray(features.detach().cpu().numpy())
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
            index = faiss.index_cpu_to_gpu(_resources(), features.device.index or 0, index)
        index.add(array)
        return index

    def _ask(self, index: Any, queries: np.ndarray[Any, Any], k: int) -> tuple[Tensor, Tensor]:
        if not k:
            return torch.empty((len(queries), 0)), torch.empty((len(queries), 0), dtype=torch.int64)
        scores, ids = index.search(queries, k)
        if (ids < 0).any():
            raise ValueError(f"the approximate index found fewer than {k} neighbours of a query; use backend 'faiss'")
        distances = 1 - scores if self.similarity == "cosine" else np.sqrt(np.maximum(scores, 0))
        return torch.from_numpy(distances), torch.from_numpy(ids)


@cache
def _resources() -> Any:
    """Of all indexes on GPUs: each such object takes 1.5 GiB of a card for its temporary memory."""
    import faiss

    return faiss.StandardGpuResources()
