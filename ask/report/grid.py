"""A table before it is written: its numbers by position, and labels that neighbours share."""

from collections.abc import Sequence
from dataclasses import dataclass

from ask.report.values import Value, format_published, format_value

Headers = Sequence[Sequence[str]]

SHADES = (1.0, 3.0, 10.0)
"""Differences (points) from which a cell is shaded lightly, clearly and strongly."""

MANY_COLUMNS = 4
"""A table of more columns is set tighter, to fit a page."""


@dataclass(frozen=True)
class Number:
    """One cell of a table, ready to be written."""

    value: Value
    paper_mean: float | None
    paper_ci95: float | None
    reference: str
    comparable: bool

    @property
    def difference(self) -> float | None:
        """Measured minus paper, in points; None where the two cannot be compared."""
        if self.paper_mean is None or not self.comparable:
            return None
        return self.value.mean - self.paper_mean

    @property
    def paper(self) -> str | None:
        """The paper's value as printed there."""
        return None if self.paper_mean is None else format_published(self.paper_mean, self.paper_ci95)

    @property
    def measured(self) -> str:
        """The measured value, rounded as its interval allows."""
        return format_value(self.value.mean, self.value.ci95)

    @property
    def shade(self) -> str:
        """Class of the difference: ``above-2``, ``below-1``; empty when small."""
        points = self.difference or 0.0
        level = sum(abs(points) >= threshold for threshold in SHADES)
        return f"{'above' if points > 0 else 'below'}-{level}" if level else ""


Numbers = dict[tuple[int, int], Number]
"""Numbers of a table by (row, column); a position may be empty."""


def spans(headers: Headers, level: int) -> list[tuple[str, int, int]]:
    """Runs of neighbours that share a label at this level and every level above: (label, start, length)."""
    merged: list[tuple[str, int, int]] = []
    for position, labels in enumerate(headers):
        if position and list(labels[: level + 1]) == list(headers[position - 1][: level + 1]):
            label, start, length = merged[-1]
            merged[-1] = (label, start, length + 1)
        else:
            merged.append((labels[level], position, 1))
    return merged
