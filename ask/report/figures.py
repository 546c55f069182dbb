"""Any line plot of the run: SVG, PNG and PDF, the drawn values as CSV and their trials as JSON, from one frame."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

from ask.paths import Run
from ask.report.captions import noted
from ask.report.numbers import METRICS, Json, collect, write_numbers
from ask.report.plotting import COLOURS, INK, MARKERS, PAGE, save

PANEL_INCHES = (3.75, 3.0)
LEAST_POINTS = 8.0
"""Smallest height of the value axis, lest noise fill the panel."""
PAPER: dict[str, Any] = {"linewidth": 1, "linestyle": (0, (4, 2)), "markerfacecolor": PAGE}
"""Look of the paper's lines: dashed, with hollow markers."""

Look = tuple[str, str]
"""Colour and marker of a line, which follow its label through all panels."""


def render_figure(job: Json, run: Run) -> list[Path]:
    """Write ``.csv``, ``.json``, ``.svg``, ``.png`` and ``.pdf`` of a figure.

    A job with ``"comparable": false`` says that the paper's lines belong to other data sets. Raises MissingValueError.
    """
    numbers, path = collect(job, run), run.figure(job["id"])
    written = write_numbers(path, *noted(job, numbers, "panel", "line", "x"))
    return written + save(lambda: draw(job, numbers), path, job, numbers["reference"])


def draw(job: Json, numbers: pd.DataFrame) -> Figure:
    """The panels side by side, on one value axis where they show the same quantity."""
    drawn = numbers.astype(dict.fromkeys(("x", "mean", "ci95", "paper_mean"), float)).sort_values("x", kind="stable")
    (width, height), panels = PANEL_INCHES, job["panels"]
    figure = Figure(figsize=(width * len(panels) + 0.6, height), layout=ConstrainedLayoutEngine(wspace=0.05))
    FigureCanvasAgg(figure)
    shared = len({panel["y_label"] for panel in panels}) == 1
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=shared)[0]
    looks: dict[str, Look] = {}
    for position, (place, panel) in enumerate(zip(axes, panels, strict=True)):
        points = drawn[drawn["axes"] == position]
        lines = {line["label"]: points[points["line"] == line["label"]] for line in panel["lines"]}
        if not looks.keys() & lines:
            # Nothing in common with the panels before: the clearest colours are free again.
            looks = {}
        low, high = limits(drawn if shared else points)
        place.set(xlabel=panel["x_label"], ylim=(low, high))
        place.set_title(panel["title"], loc="left")
        if position == 0 or not shared:
            place.set_ylabel(panel["y_label"])
        place.grid(axis="y", color="#8b949e", alpha=0.28, linewidth=0.6)
        place.set_axisbelow(True)
        place.spines["left"].set_visible(False)
        set_places(place, places := list(points["x"].unique()))
        if len(places) == 1:  # side by side, lest one interval hide another
            lines = {
                name: line.assign(x=places[0] + i - (len(lines) - 1) / 2)
                for i, (name, line) in enumerate(lines.items())
            }
            place.set_xlim(places[0] - len(lines), places[0] + len(lines))
        for label, line in lines.items():
            turn = len(looks)
            look = looks.setdefault(label, (COLOURS[turn % len(COLOURS)], MARKERS[turn % len(MARKERS)]))
            draw_line(place, line, look)
        # A label of 8 points takes some 10 points of the panel's height, of which the axes fill about three quarters.
        draw_labels(place, lines, looks, gap=(high - low) * 11 / (height * 72 * 0.74))
    if drawn["paper_mean"].notna().any():
        paper = "paper" if job.get("comparable", True) else "paper, other data sets"
        common: dict[str, Any] = {"color": INK, "marker": "o", "markersize": 4.5}
        measured = Line2D([], [], **common, linewidth=1.6, label="measured, 95% interval")
        handles = [measured, Line2D([], [], **common, **PAPER, label=paper)]
        figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def limits(points: pd.DataFrame) -> tuple[float, float]:
    """Range of the value axis: the points and their intervals with some air; of accuracies, within 0 to 100."""
    half = points["ci95"].fillna(0)
    values = pd.concat([points["mean"] - half, points["mean"] + half, points["paper_mean"]])
    low, high = values.min(), values.max()
    air = max((high - low) * 0.08, (LEAST_POINTS - (high - low)) / 2, 0.5)
    shares = points["metric"].isin(METRICS).all()  # not differences, or times
    return (max(low - air, -1.5), min(high + air, 101.5)) if shares else (low - air, high + air)


def set_places(panel: Axes, places: Sequence[float]) -> None:
    """Mark the measured places of the x axis, on a logarithmic one when they span two orders of magnitude."""
    if places[0] > 0 and places[-1] / places[0] >= 100:
        panel.set_xscale("log")
    if len(places) <= 9:
        # A place too near to the last one that was named, for a name of its length, keeps its mark alone.
        names, last, linear = [], -math.inf, panel.get_xscale() == "linear"
        for name, place in ((f"{place:g}", place) for place in places):
            near = linear and place - last < max(0.14, 0.045 * len(name)) * (places[-1] - places[0])
            names.append("" if near else name)
            last = last if near else place
        panel.set_xticks(places, names)
        panel.set_xticks([], minor=True)


def draw_line(panel: Axes, line: pd.DataFrame, look: Look) -> None:
    """The measured line with its intervals as bars and band; the paper's beneath it, dashed and hollow."""
    colour, marker = look
    x, mean, half, paper = (line[name].to_numpy() for name in ("x", "mean", "ci95", "paper_mean"))
    half = np.nan_to_num(half)
    if len(known := np.flatnonzero(~np.isnan(paper))):
        panel.plot(x[known], paper[known], color=colour, marker=marker, markersize=5.5, markeredgewidth=1, **PAPER)
    panel.fill_between(x, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
    style: dict[str, Any] = {"linewidth": 1.6, "elinewidth": 1, "markersize": 6}
    style |= {"markeredgewidth": 0.8, "markeredgecolor": PAGE}
    panel.errorbar(x, mean, yerr=half if half.any() else None, color=colour, marker=marker, **style)


def draw_labels(panel: Axes, lines: Mapping[str, pd.DataFrame], looks: Mapping[str, Look], *, gap: float) -> None:
    """Name each line at its right end, so that no reader has to match a legend."""
    ends = [(line["x"].iloc[-1], line["mean"].iloc[-1]) for line in lines.values()]
    heights = spread([mean for _, mean in ends], gap, *panel.get_ylim())
    for label, end, height in zip(lines, ends, heights, strict=True):
        panel.annotate(
            label,
            xy=end,
            xytext=(1.07, height),
            textcoords=panel.get_yaxis_transform(),
            va="center",
            annotation_clip=False,
            # From the label's left end, not from its middle, through the others.
            arrowprops={"arrowstyle": "-", "color": looks[label][0], "linewidth": 0.8, "shrinkA": 1, "shrinkB": 4}
            | {"relpos": (0, 0.5)},
        )


def spread(heights: Sequence[float], gap: float, low: float = -math.inf, high: float = math.inf) -> list[float]:
    """Nearest heights in the same order that keep a gap, in a range if there is room for all: isotonic regression."""
    order, steps = np.argsort(heights, kind="stable"), gap * np.arange(len(heights))
    placed, most = np.empty(len(heights)), max(low, high - steps[-1])
    placed[order] = isotonic_regression(np.asarray(heights)[order] - steps).x.clip(low, most) + steps
    return list(placed)
