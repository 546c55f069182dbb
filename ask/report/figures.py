"""Any line plot of the run: SVG, PNG and PDF, the drawn values as CSV and their trials as JSON, from one description.

The same job gives the same bytes: no dates, fixed identifiers, fonts that come with matplotlib.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from ask.paths import Run
from ask.report.colours import INK, PAGE
from ask.report.plotting import COLOURS, MARKERS, STYLE, save
from ask.report.values import (
    COLUMNS,
    Json,
    Value,
    format_plain,
    lookup,
    number,
    tidy,
    write_csv,
    write_numbers,
    write_reference,
)

PANEL_INCHES = (3.75, 3.0)
LEAST_POINTS = 8.0
"""Smallest height of the value axis, lest noise fill the panel."""


@dataclass(frozen=True)
class Point:
    """One drawn number."""

    x: float
    value: Value
    paper_mean: float | None


@dataclass(frozen=True)
class Line:
    """One drawn line; its look follows its label through all panels."""

    label: str
    points: tuple[Point, ...]
    colour: str
    marker: str


def render_figure(job: Json, run: Run) -> list[Path]:
    """Write ``.csv``, ``.json``, ``.svg``, ``.png`` and ``.pdf`` of a figure.

    A job with ``"comparable": false`` says that the paper's lines belong to other data sets.

    Raises:
        MissingValueError: a cell has not been measured.
    """
    looks: dict[str, tuple[str, str]] = {}
    panels: list[list[Line]] = []
    rows: list[dict[str, str]] = []
    trials: list[Json] = []
    references: list[str] = []
    for panel in job["panels"]:
        lines = []
        if not any(line["label"] in looks for line in panel["lines"]):
            # Nothing in common with the panels before: the clearest colours are free again.
            looks = {}
        for line in panel["lines"]:
            turn = len(looks)
            look = looks.setdefault(line["label"], (COLOURS[turn % len(COLOURS)], MARKERS[turn % len(MARKERS)]))
            points = []
            for point in line["points"]:
                entry = point["entry"]
                value = lookup(entry, run)
                points.append(Point(point["x"], value, entry.get("paper_mean")))
                place = {"panel": panel["title"], "line": line["label"], "x": format_plain(point["x"])}
                rows.append(tidy(job["id"], entry, value) | place)
                trials.append(number(entry, value, line=line["label"], x=point["x"]))
                references.append(write_reference(entry))
            lines.append(Line(line["label"], tuple(sorted(points, key=lambda point: point.x)), *look))
        panels.append(lines)
    path = run.figure(job["id"])
    written = [
        write_csv(path, (*COLUMNS, "panel", "line", "x"), rows),
        write_numbers(path.with_suffix(".json"), trials),
    ]
    with mpl.rc_context():
        # A matplotlibrc of the user's own must not change what is drawn.
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | {"svg.hashsalt": job["id"]})
        figure = draw(job["panels"], panels, paper="paper" if job.get("comparable", True) else "paper, other data sets")
        return written + save(figure, path, job, list(dict.fromkeys(references)))


def draw(descriptions: Sequence[Json], panels: Sequence[Sequence[Line]], *, paper: str) -> Figure:
    """The panels side by side, on one value axis where they show the same quantity; `paper` names its dashed lines."""
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(panels) + 0.6, height), layout=ConstrainedLayoutEngine(wspace=0.05))
    FigureCanvasAgg(figure)
    shared = len({description["y_label"] for description in descriptions}) == 1
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=shared)[0]
    everything = [point for lines in panels for line in lines for point in line.points]
    for position, (panel, description, lines) in enumerate(zip(axes, descriptions, panels, strict=True)):
        low, high = limits(everything if shared else [point for line in lines for point in line.points])
        panel.set_ylim(low, high)
        panel.set_title(description["title"], loc="left")
        panel.set_xlabel(description["x_label"])
        if position == 0 or not shared:
            panel.set_ylabel(description["y_label"])
        panel.grid(axis="y", color="#8b949e", alpha=0.28, linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines["left"].set_visible(False)
        set_places(panel, sorted({point.x for line in lines for point in line.points}))
        for line in lines:
            draw_line(panel, line)
        # A label of 8 points takes some 10 points of the panel's height, of which the axes fill about three quarters.
        draw_labels(panel, lines, gap=(high - low) * 11 / (height * 72 * 0.74))
    if any(point.paper_mean is not None for point in everything):
        keys = [
            Line2D([], [], color=INK, marker="o", markersize=4.5, linewidth=1.6, label="measured, 95% interval"),
            Line2D(
                [],
                [],
                color=INK,
                linestyle=(0, (4, 2)),
                linewidth=1,
                marker="o",
                markersize=4.5,
                markerfacecolor=PAGE,
                label=paper,
            ),
        ]
        figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False)
    return figure


def limits(points: Sequence[Point]) -> tuple[float, float]:
    """Range of the value axis: the points and their intervals with some air, within 0 to 100."""
    values = [p.value.mean + sign * (p.value.ci95 or 0) for p in points for sign in (-1, 1)]
    values += [p.paper_mean for p in points if p.paper_mean is not None]
    low, high = min(values), max(values)
    air = max((high - low) * 0.08, (LEAST_POINTS - (high - low)) / 2, 0.5)
    return max(low - air, -1.5), min(high + air, 101.5)


def set_places(panel: Axes, places: Sequence[float]) -> None:
    """Mark the measured places of the x axis, on a logarithmic one when they span two orders of magnitude."""
    if places[0] > 0 and places[-1] / places[0] >= 100:
        panel.set_xscale("log")
    if len(places) <= 9:
        # A place too near to the last one that was named keeps its mark, not its name.
        names, last = [], -math.inf
        for place in places:
            near = panel.get_xscale() == "linear" and place - last < 0.14 * (places[-1] - places[0])
            names.append("" if near else f"{place:g}")
            last = last if near else place
        panel.set_xticks(places, names)
        panel.set_xticks([], minor=True)


def draw_line(panel: Axes, line: Line) -> None:
    """The measured line with its intervals as bars and band; the paper's beneath it, dashed and hollow."""
    x = [point.x for point in line.points]
    mean = [point.value.mean for point in line.points]
    half = [point.value.ci95 or 0.0 for point in line.points]
    published = [(point.x, point.paper_mean) for point in line.points if point.paper_mean is not None]
    if published:
        panel.plot(
            *zip(*published, strict=True),
            color=line.colour,
            linewidth=1,
            linestyle=(0, (4, 2)),
            marker=line.marker,
            markersize=5.5,
            markerfacecolor=PAGE,
            markeredgewidth=1,
        )
    low, high = ([m + sign * h for m, h in zip(mean, half, strict=True)] for sign in (-1, 1))
    panel.fill_between(x, low, high, color=line.colour, alpha=0.15, linewidth=0)
    panel.errorbar(
        x,
        mean,
        yerr=half if any(half) else None,
        color=line.colour,
        linewidth=1.6,
        elinewidth=1,
        marker=line.marker,
        markersize=6,
        markeredgewidth=0.8,
        markeredgecolor=PAGE,
    )


def draw_labels(panel: Axes, lines: Sequence[Line], *, gap: float) -> None:
    """Name each line at its right end, so that no reader has to match a legend."""
    ends = [line.points[-1] for line in lines]
    for line, end, height in zip(lines, ends, spread([end.value.mean for end in ends], gap), strict=True):
        panel.annotate(
            line.label,
            xy=(end.x, end.value.mean),
            xytext=(1.07, height),
            textcoords=panel.get_yaxis_transform(),
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": line.colour, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4},
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Nearest heights in the same order that keep a gap: isotonic regression by pooling neighbours."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([heights[i] - rank * gap])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [_mean(pool) for pool in pools for _ in pool]
    placed = [0.0] * len(heights)
    for rank, i in enumerate(order):
        placed[i] = level[rank] + rank * gap
    return placed


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
