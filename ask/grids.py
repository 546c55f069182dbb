"""Grids of calibrations: what lies at their ends, and how they grow beyond."""

from collections.abc import Mapping, Sequence

Point = Mapping[str, float]
"""A point of a grid, by parameter."""
GROWING = ("tau", "alpha", "learning_rate")
"""Parameters on a scale of ratios, whose grids may grow; omega ends at 0 and 1, and guides are what a run affords."""
WIDEST = 3
"""Largest ratio of one step outwards: what lies next to the end, not far beyond a coarse grid's."""
BOUNDED = ("omega",)
"""Parameters between 0 and 1, where the end of a grid says nothing if one more step of it would leave them."""
OF_LAYERS = 4
"""Factor by which the weight of each of more than two layers is tried smaller and larger, in turn."""


def weighed(weights: Point, layer: str) -> list[dict[str, float]]:
    """Weights of layers, which sum to 1, with one smaller and larger by :data:`OF_LAYERS`."""
    found = [{**weights, layer: factor * weights[layer]} for factor in (1 / OF_LAYERS, OF_LAYERS)]
    return [{name: float(f"{value / sum(one.values()):.4g}") for name, value in one.items()} for one in found]


def ends(point: Point, grid: Sequence[Point]) -> list[str]:
    """Parameters of a grid's point that are the smallest or largest tried; one that has a single value is not searched.

    A parameter named here is not known to be at its best: beyond the grid may lie a better value.
    """
    found = []
    for name, value in point.items():
        tried = sorted({other[name] for other in grid if name in other})
        if len(tried) > 1 and value in (tried[0], tried[-1]):
            further = 2 * value - (tried[1] if value == tried[0] else tried[-2])
            if name not in BOUNDED or 0 < round(further, 9) < 1:
                found.append(name)
    return found


def beyond(point: Point, grid: Sequence[Point]) -> dict[str, float] | None:
    """The next point outwards from one at an end of its grid, by the ratio of the grid's last step there, at most 3.

    Returns the point with one parameter smaller or larger than any tried (to three digits); None if it lies inside.
    """
    for name in ends(point, grid):
        if name in GROWING:
            tried = sorted({other[name] for other in grid})
            last, before = (tried[0], tried[1]) if point[name] == tried[0] else (tried[-1], tried[-2])
            return {**point, name: float(f"{last * min(max(last / before, 1 / WIDEST), WIDEST):.3g}")}
    return None
