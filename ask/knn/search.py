"""Exact k-nearest-neighbour search, over all references and class by class, from one matrix product.

Scores are computed in float32 with the references sorted by class. Where two neighbouring scores are
closer than float32 can tell apart, those queries alone are ranked again in float64; references that
are equidistant even then are ordered by their position. Ids therefore equal those of a float64 search.

A zero vector has no direction; here its cosine similarity to everything is 0, and its distance 1: a zero reference
ranks as one at right angles to the query, and to a zero query all references are equally near, the first given first.
Vectors shorter than 1e-12 (:func:`ask.knn.similarity.unit`) count as zero.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ask.knn.similarity import Similarity, unit
from ask.precision import products_read_as

DEFAULT_MEMORY = 256 * 2**20
_SHORTLIST = 16
"""Candidates beyond k that a second ranking looks at before it falls back to all references."""
_QUERIES = 2048
"""Queries that are compared at a time, where memory allows, before references are taken in blocks."""
_LONG = ", or such as float32 can't square"
_CACHED = 2 * 2**20
"""Bytes of differences at a time on a CPU: what stays in its cache is subtracted, squared and summed there."""
_CANCELLING = 1e-3
"""Rounding of the squared norm of the references' mean, against their mean squared distance from it, from which on a
constant that all features carry is taken off before distances are computed from products."""


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


class Search(ABC):
    """A reference set as attacks and classifiers need it: sorted by class, with the way back to the order given.

    Attributes:
        similarity: ``cosine`` or ``l2``.
        n_classes: number of classes.
        features: references sorted by class (references, dimensions); unit length under cosine.
        counts: references of each class (classes,).
        bounds: first row and row behind the last of each class.
        order: position of each of ``features`` in the set as given.
        classes: labels that the classes stand for, ascending (classes,), int64, where these are not 0, 1, ...; the
            labels that attacks get are then these. None: labels are classes.
        centre: mean of the references (dimensions,), where l2 distances that are computed from products should be those
            of vectors less this one: the rounding of its squared norm would else reach a thousandth of the references'
            mean squared distance from it (in float32: it is some 90 times as long as they are far from it). Else None.

    Raises ValueError, with the fix, for references that can't be searched.
    """

    def __init__(
        self, features: Tensor, labels: Tensor, *, n_classes: int | None = None, similarity: Similarity = "cosine"
    ) -> None:
        self.similarity: Similarity = similarity
        self.n_classes = n_classes or (int(labels.max()) + 1 if labels.numel() else 1)
        self.counts = _counts(features, labels, self.n_classes)
        self.order = torch.argsort(labels, stable=True)
        self._row = torch.empty_like(self.order)
        self._row[self.order] = torch.arange(len(self.order), device=self.order.device)
        ordered = features.detach()[self.order]
        ordered = ordered if ordered.dtype == torch.float64 else ordered.float()
        if not ordered.norm(dim=1).isfinite().all():
            raise ValueError(f"references hold NaN or infinite values{_LONG}; check what they were made from")
        self.features = _directions(ordered) if similarity == "cosine" else ordered
        self.classes: Tensor | None = None
        self.centre = common(ordered) if similarity == "l2" else None
        ends = self.counts.cumsum(0).tolist()
        self.bounds = list(zip([0, *ends[:-1]], ends, strict=True))

    def search(self, queries: Tensor, *, k: int = 0, k_class: int = 0) -> Neighbours:
        """The ``k`` nearest of all and the ``k_class`` nearest of each class, for queries (queries, dimensions).

        Raises ValueError for queries of another shape or device, NaN, or more neighbours than there are references.
        """
        queries = self._checked(queries, k, k_class)
        zero = (queries == 0).all(1) if self.similarity == "cosine" else queries.new_zeros((), dtype=torch.bool)
        if not zero.any():
            return self._nearest(queries, k, k_class)
        # In place of a zero query another one, for ties with all references would be settled one by one.
        found = self._nearest(torch.where(zero.unsqueeze(1), self.features[:1], queries), k, k_class)
        found.indices[zero] = torch.arange(k, device=zero.device)
        starts = torch.tensor([start for start, _ in self.bounds], device=zero.device)
        found.class_indices[zero] = self.order[starts.unsqueeze(1) + torch.arange(k_class, device=zero.device)]
        found.distances[zero], found.class_distances[zero] = 1, 1
        return found

    @abstractmethod
    def _nearest(self, queries: Tensor, k: int, k_class: int) -> Neighbours:
        """As :meth:`search`, of queries that are checked and in the form of :attr:`_compared`."""

    @cached_property
    def _compared(self) -> Tensor:
        """References as distances from products are computed of them."""
        return self.features if self.centre is None else self.features - self.centre

    def rows(self, indices: Tensor) -> Tensor:
        """Rows of ``features`` for positions in the reference set as it was given."""
        return self._row[indices]

    def _checked(self, queries: Tensor, k: int, k_class: int) -> Tensor:
        """Queries (queries, dimensions) ready for comparison."""
        count, dimensions = self.features.shape
        fewest = int(self.counts.min())
        if queries.ndim != 2 or queries.shape[1] != dimensions:
            raise ValueError(f"queries must be (queries, {dimensions}) like the references, got {tuple(queries.shape)}")
        if queries.device != self.features.device:
            raise ValueError(
                f"queries are on {queries.device}, references on {self.features.device}; move one with .to()"
            )
        if k > count:
            raise ValueError(f"k={k} exceeds the {count} references; lower k or add references")
        if k_class > fewest:
            raise ValueError(
                f"k={k_class} exceeds the {fewest} references of class {int(self.counts.argmin())};"
                " lower k or add references of that class"
            )
        queries = queries.detach().to(self.features.dtype)
        if not queries.norm(dim=1).isfinite().all():
            raise ValueError(f"queries hold NaN or infinite values{_LONG}")
        if self.centre is not None:
            return queries - self.centre
        return _directions(queries) if self.similarity == "cosine" else queries


def _directions(features: Tensor) -> Tensor:
    """Features scaled to length 1; those too short to have a direction are zero."""
    directions = unit(features)
    short = directions.norm(dim=1) < 0.5
    return directions.masked_fill_(short.unsqueeze(1), 0) if short.any() else directions


def common(features: Tensor, kind: torch.dtype | None = None) -> Tensor | None:
    """What all features (references, dimensions) carry, where it would drown distances of ``kind``; see ``centre``."""
    mean = features.mean(0)
    carried = float(mean.double().square().sum())
    spread = float(features.square().sum(1).double().mean()) - carried
    if torch.finfo(kind or features.dtype).eps * carried <= _CANCELLING * spread:
        return None
    # In coarse steps, so that taking it off does not round whole numbers, and equal distances stay equal.
    step = 2.0 ** math.floor(math.log2(max(float(features.var(0, correction=0).mean()), 1e-30)) / 2)
    return mean.div(step).round_().mul_(step)


def _counts(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Class counts (classes,) of a reference set; raises ValueError with the fix if it can't be searched."""
    if features.ndim != 2 or not len(features):
        raise ValueError(f"references must be (references, dimensions), got shape {tuple(features.shape)}; flatten(1)?")
    if labels.shape != (len(features),) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 of shape ({len(features)},), got {labels.dtype} {tuple(labels.shape)}")
    if labels.device != features.device:
        raise ValueError(f"labels are on {labels.device}, references on {features.device}; move one with .to()")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(
            f"labels must lie in 0..{n_classes - 1}, got {int(labels.min())}..{int(labels.max())}; raise n_classes?"
        )
    counts = torch.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        raise ValueError(f"class {int(counts.argmin())} has no reference; every class needs at least one")
    return counts


class ExactSearch(Search):
    """Exact neighbours under cosine similarity or l2 distance, on the device of the references.

    Args:
        features: references (references, dimensions); float64 is kept, anything else becomes float32.
        labels: their classes (references,), int64 in 0..n_classes-1.
        n_classes: number of classes, each with at least one reference; default: largest label + 1.
        similarity: ``cosine`` or ``l2``.
        memory: bytes that the scores of one chunk of queries may take.

    Attributes as :class:`Search`.
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
        self.square_norms = self._compared.square().sum(1)
        zero = self.square_norms == 0
        self._zero = zero if similarity == "cosine" and zero.any() else None
        if self._zero is not None:  # a zero reference has the score of one at right angles to the query
            self.square_norms[zero] = 1
        self._max_norm = self.square_norms.max().sqrt()

    @products_read_as("ieee")  # ids are exact whatever the environment says
    def _nearest(self, queries: Tensor, k: int, k_class: int) -> Neighbours:
        """As :class:`Search`."""
        blocks = self._blocks(len(queries))
        widest = max(self.bounds[last - 1][1] - self.bounds[first][0] for first, last in blocks)
        chunk = max(1, self.memory // (4 * widest))
        # One buffer for the scores of all chunks: fresh memory of this size costs a tenth of the product on a CPU.
        buffer = queries.new_empty(min(chunk, len(queries)) * widest)
        parts = [self._search(part, k, k_class, blocks, buffer) for part in queries.split(chunk)]
        return Neighbours(*(torch.cat(pieces) for pieces in zip(*parts, strict=True)))

    def _blocks(self, queries: int) -> list[tuple[int, int]]:
        """Classes from one to before another whose references are compared with so many queries at a time."""
        most = self.memory // (4 * max(1, min(queries, _QUERIES)))
        blocks, first = [], 0
        for last, (_, end) in enumerate(self.bounds):
            if last > first and end - self.bounds[first][0] > most:
                blocks.append((first, last))
                first = last
        return [*blocks, (first, len(self.bounds))]

    def _scores(self, queries: Tensor, start: int, end: int, out: Tensor | None = None) -> Tensor:
        """q.r - |r|^2 / 2 (queries, end - start), which ranks as the distance does; |r| = 1 under cosine."""
        rows = self._compared[start:end]
        return torch.addmm(self.square_norms[start:end], queries, rows.T, beta=-0.5, out=out)

    def _search(
        self, queries: Tensor, k: int, k_class: int, blocks: list[tuple[int, int]], buffer: Tensor
    ) -> tuple[Tensor, ...]:
        tolerance = self._tolerance(queries)
        per_class, per_class_scores, class_ids, class_scores = [], [], [], []
        for first, last in blocks:
            begin, stop = self.bounds[first][0], self.bounds[last - 1][1]
            out = buffer[: len(queries) * (stop - begin)].view(len(queries), stop - begin)
            scores = self._scores(queries, begin, stop, out)
            for start, end in self.bounds[first:last]:
                own = scores[:, start - begin : end - begin]
                # One place more than asked for, so that a near tie at the k-th place shows.
                best, place = own.topk(min(max(k, k_class) + 1, end - start), dim=1)
                ids = place + start
                per_class.append(ids)
                per_class_scores.append(best)
                ids = self._settle(
                    queries, own, best[:, : k_class + 1], ids[:, : k_class + 1], tolerance, k_class, (start, end)
                )
                class_ids.append(ids)
                class_scores.append(own.gather(1, ids - start))
        whole = scores if len(blocks) == 1 else None
        found = self._of_all(queries, per_class, per_class_scores, whole, tolerance, k)
        stacked = torch.stack(class_ids, 1)
        class_distances = self._score_distances(queries, torch.cat(class_scores, 1))
        return *found, self.order[stacked], class_distances.reshape(stacked.shape)

    def _tolerance(self, queries: Tensor) -> Tensor:
        """How far rounding can move one score (queries, 1); tested against float64."""
        rounding: float = torch.finfo(queries.dtype).eps * (4 + queries.shape[1] ** 0.5 / 8)
        return self._largest(queries.norm(dim=1, keepdim=True)) * rounding

    def _largest(self, norms: Tensor) -> Tensor:
        """Largest terms of scores, of queries with these norms (queries, 1)."""
        return torch.maximum(norms * self._max_norm, self._max_norm.square() / 2)

    def _of_all(
        self,
        queries: Tensor,
        per_class: list[Tensor],
        per_class_scores: list[Tensor],
        scores: Tensor | None,
        tolerance: Tensor,
        k: int,
    ) -> tuple[Tensor, Tensor]:
        """Positions and distances (queries, k) of the nearest of all, from the rows of each class's nearest k + 1."""
        if not k:
            empty = torch.empty((len(queries), 0), device=queries.device)
            return empty.long(), empty
        best, column = torch.cat(per_class_scores, 1).topk(min(k + 1, sum(ids.shape[1] for ids in per_class)), dim=1)
        ids = torch.cat(per_class, 1).gather(1, column)
        ids = self._settle(queries, scores, best, ids, tolerance, k, (0, len(self.features)))
        return self.order[ids], self._distances(queries, ids)

    def _score_distances(self, queries: Tensor, scores: Tensor) -> Tensor:
        """Distances from scores (queries, m): cheap, and good to float32 of the squared norms."""
        if self.similarity == "cosine":
            return 0.5 - scores
        return (queries.square().sum(1, keepdim=True) - 2 * scores).clamp_min_(0).sqrt_()

    def _settle(
        self,
        queries: Tensor,
        scores: Tensor | None,
        best: Tensor,
        ids: Tensor,
        tolerance: Tensor,
        k: int,
        rows: tuple[int, int],
    ) -> Tensor:
        """The first ``k`` of ``ids``, with near ties among ``best`` ranked again in float64.

        ``scores`` are those of the references in ``rows``, or None where they are not kept.
        """
        start, end = rows
        if not k or best.shape[1] < 2:
            return ids[:, :k]
        doubtful = (best[:, :-1] - best[:, 1:] <= 2 * tolerance).any(1).nonzero().squeeze(1)
        ids = ids[:, :k].contiguous()
        step = len(queries) if scores is not None else max(1, self.memory // (4 * (end - start)))
        for some in doubtful.split(step) if len(doubtful) else ():
            own = self._scores(queries[some], start, end) if scores is None else scores[some]
            count = own.shape[1]
            wanted = min(k + _SHORTLIST, count)
            short_scores, short = own.topk(wanted, dim=1)
            settled = self._rank(queries[some], short + start, k)
            if wanted < count:
                # Do more references than the shortlist holds vie for the k-th place?
                margin = short_scores[:, k - 1] - short_scores[:, -1] <= 2 * tolerance[some, 0]
                for row in margin.nonzero().squeeze(1).tolist():
                    everyone = torch.arange(start, start + count, device=ids.device).unsqueeze(0)
                    settled[row] = self._rank(queries[some[row]].unsqueeze(0), everyone, k)[0]
            ids[some] = settled
        return ids

    def _rank(self, queries: Tensor, candidates: Tensor, k: int) -> Tensor:
        """The ``k`` nearest of each query's candidates (queries, m) by float64 distance, then by position."""
        candidates = candidates.gather(1, self.order[candidates].argsort(1))
        nearest = []
        for query, ids in zip(queries.split(64), candidates.split(64), strict=True):
            difference = self._compared[ids].double() - query.double().unsqueeze(1)
            squared = self._at_right_angles(difference.square().sum(2), ids)
            nearest.append(ids.gather(1, squared.argsort(dim=1, stable=True)[:, :k]))
        return torch.cat(nearest)

    def _distances(self, queries: Tensor, ids: Tensor) -> Tensor:
        """Distances (queries, m) of the chosen references, by differences in float32."""
        parts = []
        memory = min(self.memory, _CACHED) if queries.device.type == "cpu" else self.memory
        step = max(1, memory // max(1, 4 * ids.shape[1] * queries.shape[1]))
        for query, chosen in zip(queries.split(step), ids.split(step), strict=True):
            squared = self._compared[chosen].sub_(query.unsqueeze(1)).square_().sum(2)
            squared = self._at_right_angles(squared, chosen)
            parts.append(squared / 2 if self.similarity == "cosine" else squared.sqrt())
        return torch.cat(parts)

    def _at_right_angles(self, squared: Tensor, ids: Tensor) -> Tensor:
        """Squared distances of unit vectors, with those of zero references as the definition has them."""
        return squared if self._zero is None else squared.masked_fill(self._zero[ids], 2)
