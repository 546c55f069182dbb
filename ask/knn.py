"""Exact k-nearest-neighbour search, over all references and class by class, from one matrix product.

Scores are computed in float32 with the references sorted by class. Where two neighbouring scores are
closer than float32 can tell apart, those queries alone are ranked again in float64; references that
are equidistant even then are ordered by their position. Ids therefore equal those of a float64 search.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .similarity import Similarity, unit

DEFAULT_MEMORY = 256 * 2**20
_SHORTLIST = 16
"""Candidates beyond k that a second ranking looks at before it falls back to all references."""
_CACHED = 2 * 2**20
"""Bytes of differences at a time on a CPU: what stays in its cache is subtracted, squared and summed there."""


@dataclass(frozen=True)
class Neighbours:
    """Nearest references of each query, nearest first.

    Distances are Euclidean under ``l2`` and 1 - cos under ``cosine``.
    """

    indices: Tensor
    """(queries, k) positions in the reference set as it was given."""
    distances: Tensor
    """(queries, k)."""
    class_indices: Tensor
    """(queries, classes, k_class) positions of the nearest references of each class."""
    class_distances: Tensor
    """(queries, classes, k_class), from the matrix product (good to float32 of the squared norms)."""


class Search(Protocol):
    """What attacks and classifiers need of a reference set; :class:`ExactSearch` and the faiss backends have it."""

    similarity: Similarity
    n_classes: int
    features: Tensor
    """References sorted by class (references, dimensions); unit length under cosine."""
    counts: Tensor
    """References of each class (classes,)."""

    def search(self, queries: Tensor, *, k: int = 0, k_class: int = 0) -> Neighbours:
        """The ``k`` nearest of all and the ``k_class`` nearest of each class, for queries (queries, dimensions)."""

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of ``features`` for positions in the reference set as it was given."""


def check_references(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Class counts (classes,) of a reference set; raises ValueError with the fix if it can't be searched."""
    if features.ndim != 2 or not len(features):
        raise ValueError(f"references must be (references, dimensions), got shape {tuple(features.shape)}; flatten(1)?")
    if labels.shape != (len(features),) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 of shape ({len(features)},), got {labels.dtype} {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"labels must lie in 0..{n_classes - 1}, got {int(labels.min())}..{int(labels.max())}; raise n_classes?"
        )
    if not torch.isfinite(features).all():
        raise ValueError("references hold NaN or infinite values; check the features that they were made from")
    counts = torch.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        raise ValueError(f"class {int(counts.argmin())} has no reference; every class needs at least one")
    return counts


def check_queries(queries: Tensor, references: Tensor, counts: Tensor, k: int, k_class: int) -> None:
    """Raises ValueError for queries of another shape or device, NaN, or more neighbours than there are references."""
    if queries.ndim != 2 or queries.shape[1] != references.shape[1]:
        raise ValueError(
            f"queries must be (queries, {references.shape[1]}) like the references, got {tuple(queries.shape)}"
        )
    if queries.device != references.device:
        raise ValueError(f"queries are on {queries.device}, references on {references.device}; move one with .to()")
    if k > len(references):
        raise ValueError(f"k={k} exceeds the {len(references)} references; lower k or add references")
    if k_class > int(counts.min()):
        raise ValueError(
            f"k={k_class} exceeds the {int(counts.min())} references of class {int(counts.argmin())};"
            " lower k or add references of that class"
        )
    if not torch.isfinite(queries).all():
        raise ValueError("queries hold NaN or infinite values")


class ReferenceSet:
    """References sorted by class, and the way back to the order in which they were given."""

    def __init__(
        self, features: Tensor, labels: Tensor, *, n_classes: int | None = None, similarity: Similarity = "cosine"
    ) -> None:
        self.n_classes = n_classes or int(labels.max()) + 1
        self.counts = check_references(features, labels, self.n_classes)
        self.similarity: Similarity = similarity
        self.order = torch.argsort(labels, stable=True)
        self._row = torch.empty_like(self.order)
        self._row[self.order] = torch.arange(len(self.order), device=self.order.device)
        ordered = features[self.order]
        ordered = ordered if ordered.dtype == torch.float64 else ordered.float()
        self.features = unit(ordered) if similarity == "cosine" else ordered
        ends = self.counts.cumsum(0).tolist()
        self.bounds = list(zip([0, *ends[:-1]], ends, strict=True))

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of ``features`` for positions in the reference set as it was given."""
        return self._row[indices]

    def checked(self, queries: Tensor, k: int, k_class: int) -> Tensor:
        """Queries (queries, dimensions) ready for comparison; raises ValueError for what can't be searched."""
        check_queries(queries, self.features, self.counts, k, k_class)
        queries = queries.to(self.features.dtype)
        return unit(queries) if self.similarity == "cosine" else queries


class ExactSearch(ReferenceSet):
    """Exact neighbours under cosine similarity or l2 distance, on the device of the references.

    Args:
        features: references (references, dimensions); float64 is kept, anything else becomes float32.
        labels: their classes (references,), int64 in 0..n_classes-1.
        n_classes: number of classes, each with at least one reference; default: largest label + 1.
        similarity: ``cosine`` or ``l2``.
        memory: bytes that the scores of one chunk of queries may take.

    Attributes:
        features: references as given (unit length under cosine), sorted by class.
        order: position of each of ``features`` in the set as given.
    """

    def __init__(
        self,
        features: Tensor,
        labels: Tensor,
        *,
        n_classes: int | None = None,
        similarity: Similarity = "cosine",
        memory: int = DEFAULT_MEMORY,
    ) -> None:
        super().__init__(features, labels, n_classes=n_classes, similarity=similarity)
        self.memory = memory
        self.square_norms = self.features.square().sum(1)
        self._max_norm = self.square_norms.max().sqrt()

    def search(self, queries: Tensor, *, k: int = 0, k_class: int = 0) -> Neighbours:
        """The ``k`` nearest of all and the ``k_class`` nearest of each class, for queries (queries, dimensions)."""
        queries = self.checked(queries, k, k_class)
        chunk = max(1, self.memory // (4 * len(self.features)))
        # One buffer for the scores of all chunks: fresh memory of this size costs a tenth of the product on a CPU.
        buffer = queries.new_empty(min(chunk, len(queries)), len(self.features))
        parts = [self._search(block, k, k_class, buffer[: len(block)]) for block in queries.split(chunk)]
        return Neighbours(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))

    def _search(self, queries: Tensor, k: int, k_class: int, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Score: q.r - |r|^2 / 2, which ranks as the distance does; |r| = 1 under cosine.
        torch.addmm(self.square_norms, queries, self.features.T, beta=-0.5, out=scores)
        tolerance = self._tolerance(queries)
        per_class, per_class_scores = [], []
        for start, end in self.bounds:
            # One place more than asked for, so that a near tie at the k-th place shows.
            wanted = min(max(k, k_class) + 1, end - start)
            best, place = scores[:, start:end].topk(wanted, dim=1)
            per_class.append(place + start)
            per_class_scores.append(best)
        all_place = torch.cat(per_class, 1)
        indices = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
        distances = torch.empty((len(queries), 0), device=queries.device)
        if k:
            best, column = torch.cat(per_class_scores, 1).topk(min(k + 1, all_place.shape[1]), dim=1)
            ids = all_place.gather(1, column)
            ids = self._settle(queries, scores, best, ids, tolerance, k, (0, len(self.features)))
            indices, distances = self.order[ids], self._distances(queries, ids)
        class_ids = [
            self._settle(queries, scores, best[:, : k_class + 1], ids[:, : k_class + 1], tolerance, k_class, bounds)
            for best, ids, bounds in zip(per_class_scores, per_class, self.bounds, strict=True)
        ]
        stacked = torch.stack(class_ids, 1)
        class_distances = self._score_distances(queries, scores.gather(1, stacked.flatten(1)))
        return indices, distances, self.order[stacked], class_distances.reshape(stacked.shape)

    def _score_distances(self, queries: Tensor, scores: Tensor) -> Tensor:
        """Distances from scores (queries, m): cheap, and good to float32 of the squared norms."""
        if self.similarity == "cosine":
            return 0.5 - scores
        return (queries.square().sum(1, keepdim=True) - 2 * scores).clamp_min_(0).sqrt_()

    def _tolerance(self, queries: Tensor) -> Tensor:
        """Bound (queries, 1) on how far rounding can move one score; tested against float64."""
        rounding: float = torch.finfo(queries.dtype).eps * (4 + queries.shape[1] ** 0.5 / 8)
        norms = queries.norm(dim=1, keepdim=True)
        largest: Tensor = torch.maximum(norms * self._max_norm, self._max_norm.square() / 2)
        return largest * rounding

    def _settle(
        self,
        queries: Tensor,
        scores: Tensor,
        best: Tensor,
        ids: Tensor,
        tolerance: Tensor,
        k: int,
        bounds: tuple[int, int],
    ) -> Tensor:
        """The first ``k`` of ``ids``, with near ties among ``best`` ranked again in float64."""
        if not k or best.shape[1] < 2:
            return ids[:, :k]
        doubtful = (best[:, :-1] - best[:, 1:] <= 2 * tolerance).any(1).nonzero().squeeze(1)
        ids = ids[:, :k].contiguous()
        if len(doubtful):
            start, end = bounds
            rows = scores[doubtful, start:end]
            wanted = min(k + _SHORTLIST, end - start)
            short_scores, short = rows.topk(wanted, dim=1)
            settled = self._rank(queries[doubtful], short + start, k)
            if wanted < end - start:
                # Do more references than the shortlist holds vie for the k-th place?
                margin = short_scores[:, k - 1] - short_scores[:, -1] <= 2 * tolerance[doubtful, 0]
                for row in margin.nonzero().squeeze(1).tolist():
                    everyone = torch.arange(start, end, device=ids.device).unsqueeze(0)
                    settled[row] = self._rank(queries[doubtful[row]].unsqueeze(0), everyone, k)[0]
            ids[doubtful] = settled
        return ids

    def _rank(self, queries: Tensor, candidates: Tensor, k: int) -> Tensor:
        """The ``k`` nearest of each query's candidates (queries, m) by float64 distance, then by position."""
        candidates = candidates.gather(1, self.order[candidates].argsort(1))
        nearest = []
        for query, ids in zip(queries.split(64), candidates.split(64), strict=True):
            difference = self.features[ids].double() - query.double().unsqueeze(1)
            nearest.append(ids.gather(1, difference.square().sum(2).argsort(dim=1, stable=True)[:, :k]))
        return torch.cat(nearest)

    def _distances(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Distances (queries, m) of the chosen references, by differences in float32."""
        parts = []
        memory = min(self.memory, _CACHED) if queries.device.type == "cpu" else self.memory
        step = max(1, memory // max(1, 4 * ids.shape[1] * queries.shape[1]))
        for query, chosen in zip(queries.split(step), ids.split(step), strict=True):
            squared = self.features[chosen].sub_(query.unsqueeze(1)).square_().sum(2)
            parts.append(squared / 2 if self.similarity == "cosine" else squared.sqrt())
        return torch.cat(parts)
