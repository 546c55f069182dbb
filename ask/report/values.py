"""What every rendering shares: finding a measured number, rounding it, and writing it down tidily.

An *entry* is one number of an artifact: the cell that measured it, the DkNN classifier and metric to read there, its
tidy columns, and the paper's value where there is one. Values are in percent, as in the paper.
"""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ask.errors import AskError
from ask.paths import Run
from ask.report.columns import SETTING_COLUMNS
from ask.statistics import summarise

Json = Mapping[str, Any]

COLUMNS = ("artifact", *SETTING_COLUMNS, "mean", "ci95", "trials", "paper_mean", "paper_ci95")
"""Columns of a tidy table, one row a number."""

METRICS = {"dknn_robust_accuracy": "robust", "dknn_clean_accuracy": "clean"}
"""Where a classifier's results keep a metric, if not under its own name."""
NETWORK_METRICS = {"dnn_robust_accuracy": "robust", "dnn_clean_accuracy": "clean"}
"""Metrics of the network itself, which no classifier measures."""
AS_MEASURED = {"ms_per_image", "setup_seconds", "ms_with_setup", "slower", "slower_with_setup"}
AS_MEASURED |= {"training_seconds", "passes_per_image", "times_passes", "times_work", "times_seconds"}
AS_MEASURED |= {"information", "ask_loss", "excess_loss", "bound", "tighter_bound", "scaled_bound", "gap", "scaled_gap"}
"""Metrics that are not fractions to be shown in percent."""

MOST_DECIMALS = 2
"""The paper's own precision, and one image in ten thousand."""

PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MINUS = "\N{MINUS SIGN}"


class MissingValueError(AskError):
    """A number that no cell on disk holds; the message says which cell and how to make it."""


class EmptyGroupError(MissingValueError):
    """A measure of a group of images that has no member, such as the failures of an attack that never failed."""


@dataclass(frozen=True)
class Value:
    """A mean over trials (percent, if an accuracy), and the half width of its 95% t-interval (None with one trial)."""

    mean: float
    ci95: float | None
    trials: int
    values: tuple[float, ...] = ()
    """The trials themselves, in order: trial t of two values shares reference set and random start."""


def lookup(entry: Json, run: Run) -> Value:
    """Measured value of an entry, in percent, milliseconds or seconds; with a baseline, the difference to it.

    Trials share reference sets and random starts, so a difference is taken trial by trial, and so is its interval
    (model by model, where several were trained).

    Raises:
        MissingValueError: the cell's file is not there, or holds no such classifier or metric.
        EmptyGroupError: no image is of the kind that the metric describes.
    """
    measured = _over_models(entry, run)
    if "baseline" in entry:
        base = _over_models({"over": (), **entry, **entry["baseline"]}, run)
        # One cell may serve another artifact with more trials; the first ones are the same.
        trials = [a - b for a, b in zip(measured["trials"], base["trials"], strict=False)]
        measured = summarise(trials)
    scale = 1 if entry["metric"] in AS_MEASURED else 100
    ci95 = measured["ci95"]
    return Value(
        mean=scale * measured["mean"],
        ci95=None if ci95 is None else scale * ci95,
        trials=len(measured["trials"]),
        values=tuple(scale * value for value in measured["trials"]),
    )


def _over_models(entry: Json, run: Run) -> dict[str, Any]:
    """An entry's statistic over trials or, where it names the cells of other models in ``over``, over models."""
    others = entry.get("over") or ()
    found = [_statistic({**entry, "cell": cell}, run) for cell in (entry["cell"], *others)]
    return summarise(one["mean"] for one in found) if others else found[0]


def _statistic(entry: Json, run: Run) -> dict[str, Any]:
    """Mean, interval and trials of an entry, as its cell holds them."""
    cell, wanted, metric = entry["cell"], entry["classifier"], entry["metric"]
    content = load_cell(cell, run)
    if metric in NETWORK_METRICS:
        measured = content.get("network", {}).get(NETWORK_METRICS[metric])
    else:
        result, name = find_result(content, wanted) or {}, str(METRICS.get(metric, metric))
        measured = result.get(name)
        if name in result and measured is None:
            raise EmptyGroupError(f"{_name(cell)}: no image is among the {metric.partition('.')[0]}")
    if not measured:
        path = run.cell(cell["dataset"], cell["model"], cell["id"])
        of = ", ".join(f"{key} {'+'.join(v) if isinstance(v, list | tuple) else v}" for key, v in wanted.items())
        raise MissingValueError(
            f"{_name(cell)} holds no {metric} of {of or 'the network'}; "
            f"make it again: snakemake --cores all --force {path}"
        )
    return dict(measured)


def load_cell(cell: Json, run: Run) -> dict[str, Any]:
    """Everything a cell measured.

    Raises:
        MissingValueError: the cell's file is not there.
    """
    path = run.cell(cell["dataset"], cell["model"], cell["id"])
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingValueError(
            f"cell {_name(cell)} has not been measured: {path} is missing; make it: snakemake --cores all {path}"
        ) from None
    return content


def find_result(cell: Json, classifier: Json) -> dict[str, Any] | None:
    """What a cell measured with one classifier (similarity, layers, K); None when it was not asked to."""
    wanted = {key: list(value) if isinstance(value, tuple) else value for key, value in classifier.items()}
    for result in cell["results"]:
        if all(result.get(key) == value for key, value in wanted.items()):
            return dict(result)
    return None


def _name(cell: Json) -> str:
    return f"{cell['dataset']}/{cell['model']}/{cell['id']}"


def write_reference(entry: Json) -> str:
    """One word for "this classifier's numbers in this cell": ``digits/at/ask-cos-L3#cosine/conv3/5``.

    Rendered tables and figures carry these, so that the report finds the cells behind what was really drawn.
    """
    classifier = entry["classifier"]
    words = []
    if "layers" in classifier:
        words = [classifier["similarity"], "+".join(classifier["layers"]), str(classifier["k"])]
    return f"{_name(entry['cell'])}#{'/'.join(words)}"


def read_reference(text: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Cell and classifier (empty where it names none) of `write_reference`."""
    name, _, classifier = text.partition("#")
    if not classifier:
        return cell_named(name), {}
    similarity, layers, k = classifier.split("/")
    return cell_named(name), {"similarity": similarity, "layers": layers.split("+"), "k": int(k)}


def cell_named(name: str) -> dict[str, str]:
    """Cell of ``dataset/model/id``."""
    return dict(zip(("dataset", "model", "id"), name.split("/"), strict=True))


def decimals_of(ci95: float | None) -> int:
    """Decimals that two significant digits of the interval justify; one without an interval."""
    if ci95 is None:
        return 1
    if ci95 == 0:
        return MOST_DECIMALS
    # Rounded first: an interval of 0.996 is 1.0, which takes one decimal, not two.
    magnitude = math.floor(math.log10(float(f"{ci95:.1e}")))
    return min(max(1 - magnitude, 0), MOST_DECIMALS)


def format_parts(mean: float, ci95: float | None) -> tuple[str, str | None]:
    """Mean and half width as text, rounded alike: ``("35.12", "0.18")``."""
    decimals = decimals_of(ci95)
    mean = round(mean, decimals) + 0.0  # no minus before a zero
    return f"{mean:.{decimals}f}", None if ci95 is None else f"{ci95:.{decimals}f}"


def format_value(mean: float, ci95: float | None) -> str:
    """``35.12±0.18``; without an interval ``35.1``."""
    text, half_width = format_parts(mean, ci95)
    return text if half_width is None else f"{text}{PLUS_MINUS}{half_width}"


def format_published(mean: float, ci95: float | None) -> str:
    """The paper's value with the digits it was printed with: ``41±0.19``."""
    return f"{mean:g}" if ci95 is None else f"{mean:g}{PLUS_MINUS}{ci95:g}"


def format_difference(points: float) -> str:
    """Signed percentage points, with a true minus sign: ``+1.3``, ``−0.4``, ``0.0``."""
    text = f"{abs(points):.1f}"
    if text == "0.0":
        return text
    return ("+" if points > 0 else MINUS) + text


def format_plain(value: object) -> str:
    """A value for a CSV cell: nothing for None, and no digits beyond the fourth decimal."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{round(value, 4):.10g}"
    return str(value)


def tidy(artifact: str, entry: Json, value: Value) -> dict[str, str]:
    """One row of a tidy CSV."""
    row: dict[str, Any] = {
        **entry["columns"],
        "artifact": artifact,
        "mean": value.mean,
        "ci95": value.ci95,
        "trials": value.trials,
        "paper_mean": entry.get("paper_mean"),
        "paper_ci95": entry.get("paper_ci95"),
    }
    return {column: format_plain(row.get(column)) for column in COLUMNS}


def number(entry: Json, value: Value, **place: object) -> dict[str, Any]:
    """One number of ``<artifact>.json``, with its trials and the cell it was read from, for claims."""
    found = {"columns": entry["columns"], "trials": value.values, "reference": write_reference(entry)}
    if "baseline" in entry:
        found["baseline"] = write_reference({**entry, **entry["baseline"]})
    return found | place


def write_numbers(path: Path, numbers: Sequence[Json]) -> Path:
    """Write all numbers of an artifact, one a line."""
    return write_text(path, "[\n" + ",\n".join(json.dumps(each, ensure_ascii=False) for each in numbers) + "\n]")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> Path:
    """Write rows with Unix line ends, so that a CSV is the same on every machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write text with Unix line ends and one at its end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    return path
