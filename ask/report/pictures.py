"""One image, clean and attacked, each beside the references nearest to it: SVG, PNG, PDF and what is shown as CSV."""

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ask.paths import Run
from ask.report.colours import INK
from ask.report.columns import SETTING_COLUMNS
from ask.report.plotting import COLOURS, STYLE, save
from ask.report.values import Json, MissingValueError, write_csv, write_reference

RIGHT, WRONG = COLOURS[0], COLOURS[1]
_SHOWN = ("row", "column", "image", "class", "predicted", "rank", "neighbour", "neighbour_class", "right")
COLUMNS = ("artifact", *(column for column in SETTING_COLUMNS if column != "metric"), *_SHOWN)
SIDE_INCHES = 0.72


def render_pictures(job: Json, run: Run) -> list[Path]:
    """Write ``.csv``, ``.svg``, ``.png`` and ``.pdf`` of the pictures.

    Raises:
        MissingValueError: the images have not been attacked yet.
    """
    source = run.example(job["id"])
    try:
        record = json.loads(source.read_text(encoding="utf-8"))
        with np.load(source.with_suffix(".npz")) as stored:
            images, neighbours = stored["images"], stored["neighbours"]
    except FileNotFoundError:
        raise MissingValueError(f"{source} is missing; make it: snakemake --cores all {source}") from None
    path = run.figure(job["id"])
    written = [write_csv(path, COLUMNS, _rows(job, record))]
    references = list(dict.fromkeys(write_reference(entry) for entry in job["entries"]))
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | {"svg.hashsalt": job["id"]})
        figure = draw(job, record, images, neighbours)
        return written + save(figure, path, job, references)


def draw(job: Json, record: Json, images: NDArray[np.uint8], neighbours: NDArray[np.uint8]) -> Figure:
    """One line of pictures for each model and attack: the image, then its neighbours framed right or wrong."""
    k = neighbours.shape[1]
    lines = len(job["entries"])
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
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(label, fontsize=7.5, labelpad=2)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(colour)
        spine.set_linewidth(width)


def _rows(job: Json, record: Json) -> list[dict[str, str]]:
    rows = []
    for entry, shown in zip(job["entries"], record["cells"], strict=True):
        common: dict[str, Any] = {
            **{key: value for key, value in entry["columns"].items() if key in COLUMNS},
            "artifact": job["id"],
            "row": ", ".join(job["row_headers"][entry["row"]]),
            "column": ", ".join(job["column_headers"][entry["column"]]),
            "image": record["image"],
            "class": record["class"],
            "predicted": shown["predicted"],
        }
        listed = zip(shown["neighbours"], shown["neighbour_classes"], shown["neighbour_right"], strict=True)
        for rank, (number, name, right) in enumerate(listed, 1):
            own = {"rank": rank, "neighbour": number, "neighbour_class": name, "right": int(right)}
            rows.append({key: str(value) for key, value in (common | own).items()})
    return rows
