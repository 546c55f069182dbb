"""Grids of calibrations: what lies at their ends, and how they grow beyond."""

from collections.abc import Mapping, Sequence

Point = Mapping[str, float]
"""A point of a grid, by parameter."""
GROWING = ("tau", "alpha", "learning_rate")
"""Parameters on a scale of ratios, whose grids may grow; omega ends at 0 and 1, and guides are what a run affords."""
WIDEST = 3
"""Largest ratio of one step outwards: what lies next to the end, not far beyond a coarse grid's."""
BOUNDED = ("omega",)
"""Parameters whose grid ends where the parameter itself does, so that an end says nothing."""


def ends(point: Point, grid: Sequence[Point]) -> list[str]:
    """Parameters of a grid's point that are the smallest or largest tried; one that has a single value is not searched.

    A parameter named here is not known to be at its best: beyond the grid may lie a better value.
    """
    found = []
    for name, value in point.items():
        tried = {other[name] for other in grid if name in other}
        if name not in BOUNDED and len(tried) > 1 and value in (min(tried), max(tried)):
            found.append(name)
    return found


def beyond(point: Point, grid: Sequence[Point]) -> dict[str, float] | None:
    """The next point outwards from one at an end of its grid, by the ratio of the grid's last step there, at most 3.

    Args:
        point: one of the grid.
        grid: all points tried so far.

    Returns:
        The same point with one parameter smaller or larger than any tried (to three digits); None if it lies inside.
    """
    for name in ends(point, grid):
        if name in GROWING:
            tried = sorted({other[name] for other in grid})
            last, before = (tried[0], tried[1]) if point[name] == tried[0] else (tried[-1], tried[-2])
            return {**point, name: float(f"{last * min(max(last / before, 1 / WIDEST), WIDEST):.3g}")}
    return None
