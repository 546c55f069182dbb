"""Drawings of stored examples: images beside their neighbours, and decision boundaries in the plane.

Each is written as SVG, PNG and PDF, with what is shown as CSV.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ask.config.artifacts import SETTING_COLUMNS
from ask.paths import Run
from ask.report.numbers import Json, MissingValueError, write_csv, write_reference
from ask.report.plotting import COLOURS, INK, PAGE, save

Arrays = dict[str, NDArray[Any]]

RIGHT, WRONG = COLOURS[0], COLOURS[1]
SIDE_INCHES = 0.72

CLASSES = ((COLOURS[0], "o"), (COLOURS[1], "^"))
CLEAN = {"kNN clean": "knn_clean", "network clean": "network_clean"}
ATTACKED = {"kNN under ASK-Atk": "knn_ask", "network under PGD": "network_pgd"}
ZOOM = 0.17
"""Half the side of the square around the attacked point, of a unit square."""


def render_drawing(job: Json, run: Run) -> list[Path]:
    """Write ``.csv``, ``.svg``, ``.png`` and ``.pdf`` of what a run has stored as an example.

    That is an image, clean and attacked, with its nearest references; or decision boundaries, with the accuracies of
    their models. Raises MissingValueError where these are yet to be made.
    """
    source, path = run.example(job["id"]), run.figure(job["id"])
    try:
        record = json.loads(source.read_text(encoding="utf-8"))
        with np.load(source.with_suffix(".npz")) as stored:
            arrays = dict(stored)
    except FileNotFoundError:
        raise MissingValueError(f"{source} is missing; make it: snakemake --cores all {source}") from None
    describe, draw = (neighbours, draw_pictures) if job["kind"] == "pictures" else (accuracies, draw_boundaries)
    rows = list(describe(job, record))
    references = map(write_reference, job.get("entries", ()))
    return [write_csv(path, list(rows[0]), rows), *save(partial(draw, job, record, arrays), path, job, references)]


def neighbours(job: Json, record: Json) -> Iterator[Json]:
    """Each neighbour of each picture, a row of the CSV."""
    for entry, shown in zip(job["entries"], record["cells"], strict=True):
        common = {
            "artifact": job["id"],
            **{name: str(entry["columns"].get(name, "")) for name in SETTING_COLUMNS if name != "metric"},
            "row": ", ".join(job["row_headers"][entry["row"]]),
            "column": ", ".join(job["column_headers"][entry["column"]]),
            "image": record["image"],
            "class": record["class"],
            "predicted": shown["predicted"],
        }
        listed = zip(shown["neighbours"], shown["neighbour_classes"], shown["neighbour_right"], strict=True)
        for rank, (number, name, right) in enumerate(listed, 1):
            yield common | {"rank": rank, "neighbour": number, "neighbour_class": name, "right": int(right)}


def draw_pictures(job: Json, record: Json, arrays: Arrays) -> Figure:
    """One line of pictures for each model and attack: the image, then its neighbours framed right or wrong."""
    images, neighbours = arrays["images"], arrays["neighbours"]
    k, lines = neighbours.shape[1], len(job["entries"])
    widths = [2.1, 1, 0.35, *[1] * k]
    figure = Figure(figsize=(SIDE_INCHES * sum(widths) + 0.2, SIDE_INCHES * 1.36 * lines + 0.45), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(lines, len(widths), width_ratios=widths, wspace=0.06, hspace=0.12)
    for i, (entry, shown) in enumerate(zip(job["entries"], record["cells"], strict=True)):
        headers = [*job["row_headers"][entry["row"]], *job["column_headers"][entry["column"]]]
        words = figure.add_subplot(grid[i, 0])
        words.axis("off")
        words.text(1, 0.5, "\n".join(filter(None, headers)), ha="right", va="center", transform=words.transAxes)
        _picture(figure.add_subplot(grid[i, 1]), images[i], f"DkNN: {shown['predicted']}", INK, 0.7)
        for j in range(k):
            right = shown["neighbour_right"][j]
            label = f"{shown['neighbour_classes'][j]} {'✓' if right else '✗'}"
            _picture(figure.add_subplot(grid[i, 3 + j]), neighbours[i, j], label, RIGHT if right else WRONG, 2.6)
    figure.suptitle(f"Class “{record['class']}”: image and its {k} nearest references", fontsize=9.5, fontweight="bold")
    return figure


def _picture(axes: Axes, image: NDArray[np.uint8], label: str, colour: str, width: float) -> None:
    """A (channels, side, side) image in a frame, with a word below."""
    pixels = image.transpose(1, 2, 0) if len(image) == 3 else image[0]
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel(label, fontsize=7.5, labelpad=2)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=width)


def accuracies(job: Json, record: Json) -> Iterator[Json]:
    """Each accuracy of each model (percent, over seeds), a row of the CSV."""
    for result in record["results"]:
        for name, value in result.items():
            if name != "model":
                who, _, images = name.partition("_")
                found = {key: None if value[key] is None else 100 * value[key] for key in ("mean", "ci95")}
                about = {"artifact": job["id"], "model": result["model"], "classifier": who, "images": images}
                yield {**about, **found, "seeds": len(value["trials"])}


def draw_boundaries(_job: Json, record: Json, arrays: Arrays) -> Figure:
    """The whole square under the first model, then the attacked point's surroundings under each model."""
    models = [result["model"] for result in record["results"]]
    radius = record["job"]["training"]["ask_eps"] / 255
    figure = Figure(figsize=(8.4, 3.3), layout="constrained")
    FigureCanvasAgg(figure)
    whole, *near = figure.subplots(1, 1 + len(models))
    x, y = arrays["benign"]
    _square(whole, f"{models[0]}: the classes", record["results"][0], arrays, (0.02, 0.98, 0.02, 0.98), CLEAN)
    middle = [min(max(place, ZOOM), 1 - ZOOM) for place in (x, y)]
    box = (middle[0] - ZOOM, middle[0] + ZOOM, middle[1] - ZOOM, middle[1] + ZOOM)
    whole.add_patch(Rectangle((box[0], box[2]), 2 * ZOOM, 2 * ZOOM, fill=False, edgecolor=INK, linewidth=0.9))
    colour, marker = CLASSES[record["class"]]
    for panel, measured in zip(near, record["results"], strict=True):
        _square(panel, f"{measured['model']} under ASK-Atk", measured, arrays, box, ATTACKED)
        ball = Rectangle((x - radius, y - radius), 2 * radius, 2 * radius, fill=False, edgecolor=INK, linestyle=":")
        panel.add_patch(ball)
        end = arrays[f"adversarial_{measured['model']}"]
        panel.annotate("", end, (x, y), arrowprops={"arrowstyle": "->", "color": INK, "linewidth": 1.3}, zorder=5)
        for place, face in (((x, y), colour), (end, PAGE)):
            panel.plot(*place, marker, color=face, markeredgecolor=INK, markeredgewidth=1.2, markersize=8, zorder=6)
    point: dict[str, Any] = {"linestyle": "", "marker": marker, "markeredgecolor": INK, "markersize": 7}
    named = {
        "network's boundary": Line2D([], [], color=INK, linewidth=1.6),
        "kNN's boundary": Line2D([], [], color=COLOURS[2], linewidth=1.6, linestyle=(0, (4, 1.5))),
        "attacked point": Line2D([], [], color=colour, **point),
        "under attack": Line2D([], [], color=PAGE, **point),
        "ε-ball": Line2D([], [], color=INK, linewidth=0.9, linestyle=":"),
    }
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)
    for _ in range(2):  # squares leave the layout unsettled after one pass
        figure.draw_without_rendering()
    return figure


def _square(panel: Axes, title: str, measured: Json, arrays: Arrays, box: tuple[float, ...], shown: Json) -> None:
    """A part of the plane: training points, regions of the kNN, boundaries, and below it the accuracies ``shown``."""
    knn, network = (arrays[f"grid_{measured['model']}_{who}"] for who in ("knn", "network"))
    side = np.linspace(0, 1, len(knn))
    panel.contourf(side, side, knn, levels=[-1, 0.5, 2], colors=[c for c, _ in CLASSES], alpha=0.12)
    panel.contour(side, side, knn, levels=[0.5], colors=COLOURS[2], linewidths=1.6, linestyles=[(0, (4, 1.5))])
    panel.contour(side, side, network, levels=[0.5], colors=INK, linewidths=1.6)
    for label, (colour, marker) in enumerate(CLASSES):
        points = arrays["points"][arrays["labels"] == label]
        panel.plot(*points.T, marker, color=colour, markersize=3.2, alpha=0.55, markeredgewidth=0)
    panel.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[], aspect="equal")
    panel.set_title(title, loc="left")
    found = [(name, measured[key]["mean"], measured[key]["ci95"] or 0) for name, key in shown.items()]
    panel.set_xlabel(
        "\n".join(f"{name} {100 * mean:.0f}±{100 * half:.0f}%" for name, mean, half in found), fontsize=7.5
    )
    for spine in panel.spines.values():
        spine.set_visible(True)
