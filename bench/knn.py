"""Exact search: the pair that an attack cell needs, global (the votes) and class by class (the references)."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ask.knn.faiss import FaissSearch
from ask.knn.search import DEFAULT_MEMORY, ExactSearch, Neighbours

from .measure import Case, Contender, Options, floor_peak, take_turns
from .peers_knn import FaissIVF, FaissPair, ScikitPair

K = 5
CLASSES = 10


def cases(options: Options) -> Iterator[Case]:
    """The pair at the size of one cell, Conv 4 of CIFAR-10; then many references."""
    peak = floor_peak(options, of="products")
    queries, references, dimensions = (60, 400, 32) if options.small else (10_000, 20_000, 2048)
    many = (2000, 4000) if options.small else (200_000, 1_000_000)
    queries_of_many, narrow = (20, 16) if options.small else (500, 256)
    yield _pair(options, peak, options.count(queries), references, dimensions, scikit=True)
    for count in many:
        # Training the lists of a million references takes longer than all searches.
        yield _pair(options, peak, options.count(queries_of_many), count, narrow, inverted=count <= 200_000)


def _pair(
    options: Options,
    peak: float,
    queries: int,
    references: int,
    dimensions: int,
    *,
    scikit: bool = False,
    inverted: bool = False,
) -> Case:
    features, labels, asked = clustered(references, queries, dimensions)
    features, labels, asked = (tensor.to(options.device) for tensor in (features, labels, asked))
    ours = ExactSearch(features, labels, n_classes=CLASSES)
    contenders = [Contender(name="ask: one product for both", run=lambda: ours.search(asked, k=K, k_class=K))]
    theirs = FaissSearch(features, labels, n_classes=CLASSES)
    again = "ask: by faiss, near ties ranked again"
    contenders.append(Contender(name=again, run=lambda: theirs.search(asked, k=K, k_class=K)))
    faiss = FaissPair(ours, K)
    contenders.append(Contender(name=f"{faiss.name}: global, then per class", run=lambda: faiss.search(asked)))
    if scikit:
        learn = ScikitPair(ours, K)
        contenders.append(Contender(name="scikit-learn brute: the same", run=lambda: learn.search(asked)))
    if inverted:
        lists = FaissIVF(features, labels, K)
        contenders.append(Contender(name=lists.name, run=lambda: lists.search(asked)))
    flop = 2.0 * queries * references * dimensions
    rows = take_turns(contenders, options, flop=flop, peaks={"float32": peak}, warm_up=options.small)
    mine: Neighbours = rows[0].result
    facts: dict[str, Any] = {
        "memory budget for scores": f"{DEFAULT_MEMORY // 2**20} MiB",
        "floor": f"{flop / 1e9:.0f} GFLOP at {peak / 1e9:.0f} GFLOP/s (measured product)",
    }
    for row in rows[1:]:
        if isinstance(row.result, Tensor):
            found = (row.result.cpu().unsqueeze(2) == mine.indices.cpu().unsqueeze(1)).any(2).float().mean()
            facts["of the nearest neighbours, faiss IVF finds"] = f"{float(found):.1%}"
            row.floor = row.result = None
            continue
        if isinstance(row.result, Neighbours):
            everyone, by_class = row.result.indices.cpu(), row.result.class_indices.cpu()
        else:
            everyone, by_class = (ours.order.cpu()[rows] for rows in row.result)
        same = [_share(mine.indices, everyone), _share(mine.class_indices, by_class)]
        facts[f"ids equal to {row.name if row.name == again else row.name.split(':')[0]}"] = (
            f"{same[0]:.4%} global, {same[1]:.4%} per class"
        )
        row.result = None
    shapes = {"queries": queries, "references": references, "dimensions": dimensions, "classes": CLASSES, "K": K}
    return Case(
        title=f"Two exact searches, {queries} x {references} x {dimensions}", shapes=shapes, rows=rows, facts=facts
    )


def _share(mine: Tensor, theirs: Tensor) -> float:
    return float((mine.cpu() == theirs).float().mean())


def clustered(references: int, queries: int, dimensions: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Non-negative features around class centres, as a ReLU leaves them: references, their labels, and queries."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((CLASSES, dimensions), dtype=np.float32)

    def draw(count: int) -> Tensor:
        drawn = generator.standard_normal((count, dimensions), dtype=np.float32)
        drawn *= 1.5
        drawn += centres[np.arange(count) % CLASSES]
        return torch.from_numpy(np.maximum(drawn, 0, out=drawn))

    return draw(references), torch.arange(references) % CLASSES, draw(queries)
