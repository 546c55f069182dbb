"""Two exact searches by others: scikit-learn's brute force and faiss' Flat index, global and class by class.

Both get the references as :class:`ask.knn.ExactSearch` holds them, of unit length and sorted by class, and answer with
rows of these: (queries, k) and (queries, classes, k). Making an index is not counted.
"""

import os

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ask.knn.search import ExactSearch
from ask.knn.similarity import unit

Pair = tuple[Tensor, Tensor]


class ScikitPair:
    """``NearestNeighbors(algorithm="brute")``: one for all references and one for each class."""

    def __init__(self, references: ExactSearch, k: int) -> None:
        from sklearn.neighbors import NearestNeighbors

        rows, self.bounds = _rows(references), references.bounds
        make = lambda part: NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=-1).fit(part)  # noqa: E731
        self.everyone, self.classes = make(rows), [make(rows[start:end]) for start, end in self.bounds]

    def search(self, queries: Tensor) -> Pair:
        """Rows of the nearest references of all and of each class."""
        asked = unit(queries).cpu().numpy()
        found = self.everyone.kneighbors(asked, return_distance=False)
        by_class = [index.kneighbors(asked, return_distance=False) for index in self.classes]
        return _pair(found, by_class, self.bounds)


class FaissPair:
    """``IndexFlatIP``: one index for all references and one for each class, on the GPU where faiss has one."""

    def __init__(self, references: ExactSearch, k: int) -> None:
        import faiss

        from ask.knn.faiss import resources

        self.k, self.bounds = k, references.bounds
        self.on_gpu = references.features.device.type == "cuda" and hasattr(faiss, "StandardGpuResources")
        self.name = "faiss-gpu Flat" if self.on_gpu else "faiss-cpu Flat"
        shared = resources() if self.on_gpu else None
        faiss.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
        rows = _rows(references)

        def make(part: NDArray[np.float32]) -> "faiss.Index":
            index = faiss.IndexFlatIP(rows.shape[1])
            if shared is not None:
                index = faiss.index_cpu_to_gpu(shared, references.features.device.index or 0, index)
            index.add(np.ascontiguousarray(part))
            return index

        self.everyone, self.classes = make(rows), [make(rows[start:end]) for start, end in self.bounds]

    def search(self, queries: Tensor) -> Pair:
        """Rows of the nearest references of all and of each class."""
        asked = unit(queries).cpu().numpy()
        found = self.everyone.search(asked, self.k)[1]
        return _pair(found, [index.search(asked, self.k)[1] for index in self.classes], self.bounds)


class FaissIVF:
    """``IndexIVFFlat`` over all references, as :class:`ask.knn.faiss.FaissSearch` sets it up: approximate."""

    name = "faiss IVF: global alone, approximate"

    def __init__(self, features: Tensor, labels: Tensor, k: int) -> None:
        from ask.knn.faiss import FaissSearch

        self.k = k
        self.references = FaissSearch(features, labels, similarity="cosine", approximate=True)

    def search(self, queries: Tensor) -> Tensor:
        """References (queries, k) in the order in which they were given."""
        return self.references.search(queries, k=self.k).indices


def _rows(references: ExactSearch) -> NDArray[np.float32]:
    return np.asarray(references.features.cpu().numpy())


def _pair(found: NDArray[np.int64], by_class: list[NDArray[np.int64]], bounds: list[tuple[int, int]]) -> Pair:
    shifted = [ids + start for ids, (start, _) in zip(by_class, bounds, strict=True)]
    return torch.from_numpy(found), torch.from_numpy(np.stack(shifted, 1))
