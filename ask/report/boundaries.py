"""Decision boundaries in the plane: SVG, PNG, PDF, and the accuracies behind them as CSV."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ask.paths import Run
from ask.report.colours import INK, PAGE
from ask.report.plotting import COLOURS, STYLE, save
from ask.report.values import Json, MissingValueError, format_plain, write_csv

COLUMNS = ("artifact", "model", "classifier", "images", "mean", "ci95", "seeds")
CLASSES = ((COLOURS[0], "o"), (COLOURS[1], "^"))
CLEAN = {"kNN clean": "knn_clean", "network clean": "network_clean"}
ATTACKED = {"kNN under ASK-Atk": "knn_ask", "network under PGD": "network_pgd"}
ZOOM = 0.17
"""Half the side of the square around the attacked point, of a unit square."""


def render_boundaries(job: Json, run: Run) -> list[Path]:
    """Write ``.csv``, ``.svg``, ``.png`` and ``.pdf`` of the boundaries.

    Raises:
        MissingValueError: the models have not been trained yet.
    """
    source = run.example(job["id"])
    try:
        record = json.loads(source.read_text(encoding="utf-8"))
        with np.load(source.with_suffix(".npz")) as stored:
            drawn = dict(stored)
    except FileNotFoundError:
        raise MissingValueError(f"{source} is missing; make it: snakemake --cores all {source}") from None
    path = run.figure(job["id"])
    written = [write_csv(path, COLUMNS, _rows(job, record))]
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | {"svg.hashsalt": job["id"]})
        return written + save(draw(record, drawn), path, job, [])


def draw(record: Json, drawn: dict[str, NDArray[Any]]) -> Figure:
    """The whole square under the first model, then the attacked point's surroundings under each model."""
    models = [result["model"] for result in record["results"]]
    radius = record["job"]["training"]["ask_eps"] / 255
    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    whole, *near = figure.subplots(1, 1 + len(models))
    x, y = drawn["benign"]
    square(whole, f"{models[0]}: the classes", models[0], drawn, record, box=(0.02, 0.98, 0.02, 0.98), shown=CLEAN)
    middle = [min(max(place, ZOOM), 1 - ZOOM) for place in (x, y)]
    box = (middle[0] - ZOOM, middle[0] + ZOOM, middle[1] - ZOOM, middle[1] + ZOOM)
    whole.add_patch(Rectangle((box[0], box[2]), 2 * ZOOM, 2 * ZOOM, fill=False, edgecolor=INK, linewidth=0.9))
    for panel, model in zip(near, models, strict=True):
        square(panel, f"{model} under ASK-Atk", model, drawn, record, box=box, shown=ATTACKED)
        ball = Rectangle((x - radius, y - radius), 2 * radius, 2 * radius, fill=False, edgecolor=INK, linestyle=":")
        panel.add_patch(ball)
        colour, marker = CLASSES[record["class"]]
        end = drawn[f"adversarial_{model}"]
        panel.annotate("", end, (x, y), arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 1.3}, zorder=5)
        for place, face in (((x, y), colour), (end, PAGE)):
            panel.plot(*place, marker, color=face, markeredgecolor=INK, markeredgewidth=1.2, markersize=8, zorder=6)
    named = {
        "network's boundary": Line2D([], [], color=INK, linewidth=1.6),
        "kNN's boundary": Line2D([], [], color=COLOURS[2], linewidth=1.6, linestyle=(0, (4, 1.5))),
        "attacked point": _mark(CLASSES[record["class"]], CLASSES[record["class"]][0]),
        "under attack": _mark(CLASSES[record["class"]], PAGE),
        "ε-ball": Line2D([], [], color=INK, linewidth=0.9, linestyle=":"),
    }
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
    for _ in range(2):  # squares leave the layout unsettled after one pass
        figure.draw_without_rendering()
    return figure


def square(
    panel: Axes,
    title: str,
    model: str,
    drawn: dict[str, NDArray[Any]],
    record: Json,
    *,
    box: tuple[float, float, float, float],
    shown: dict[str, str],
) -> None:
    """A part of the plane: training points, regions of the kNN, boundaries, and below it the accuracies ``shown``."""
    knn, network = drawn[f"grid_{model}_knn"], drawn[f"grid_{model}_network"]
    side = np.linspace(0, 1, len(knn))
    panel.contourf(side, side, knn, levels=[-1, 0.5, 2], colors=[c for c, _ in CLASSES], alpha=0.12)
    panel.contour(side, side, knn, levels=[0.5], colors=COLOURS[2], linewidths=1.6, linestyles=[(0, (4, 1.5))])
    panel.contour(side, side, network, levels=[0.5], colors=INK, linewidths=1.6)
    for label, (colour, marker) in enumerate(CLASSES):
        points = drawn["points"][drawn["labels"] == label]
        panel.plot(*points.T, marker, color=colour, markersize=3.2, alpha=0.55, markeredgewidth=0)
    left, right, bottom, top = box
    panel.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")
    panel.set_title(title, loc="left")
    measured = next(result for result in record["results"] if result["model"] == model)
    words = []
    for name, key in shown.items():
        half_width = 100 * (measured[key]["ci95"] or 0)
        words.append(f"{name} {100 * measured[key]['mean']:.0f}±{half_width:.0f}%")
    panel.set_xlabel("\n".join(words), fontsize=7.5)
    for spine in panel.spines.values():
        spine.set_visible(True)


def _mark(look: tuple[str, str], face: str) -> Line2D:
    return Line2D([], [], linestyle="", marker=look[1], color=face, markeredgecolor=INK, markersize=7)


def _rows(job: Json, record: Json) -> list[dict[str, str]]:
    rows = []
    for result in record["results"]:
        for name, value in result.items():
            if name == "model":
                continue
            who, _, images = name.partition("_")
            found = {"mean": 100 * value["mean"], "ci95": None if value["ci95"] is None else 100 * value["ci95"]}
            about = {"artifact": job["id"], "model": result["model"], "classifier": who, "images": images}
            rows.append({k: format_plain(v) for k, v in {**about, **found, "seeds": len(value["trials"])}.items()})
    return rows
