"""The numbers of an artifact: found in the run's cells, kept in one tidy frame, rounded and written down.

An *entry* of a job asks for one number: the cell that measured it, the DkNN classifier and metric to read there, its
tidy columns, and the paper's value where there is one. Values are in percent, as in the paper.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ask.config.artifacts import SETTING_COLUMNS, CostMetric, StudyMetric, TimingMetric
from ask.errors import AskError
from ask.files import write, write_text
from ask.paths import Run
from ask.statistics import Estimate, over_trials_and_images, summarise

Json = Mapping[str, Any]

COLUMNS = ("artifact", *SETTING_COLUMNS, "mean", "ci95", "ci95_trials", "trials", "paper_mean", "paper_ci95")
"""Columns of a tidy table, one row a number."""
PLACES = ("row", "column", "axes", "panel", "line", "x")
"""Where a number stands: in a table, or in a plot (`axes` counts its panels)."""
_OWN = [*("artifact", "mean", "ci95", "ci95_trials", "trials", "values"), *("paper_mean", "paper_ci95")]
_OWN += ["reference", "baseline", "over", "beside", *PLACES]

METRICS = {f"{who}_{kind}_accuracy": kind for who in ("dknn", "dnn") for kind in ("robust", "clean", "kept")}
"""Where results keep a metric, if not under its own name: a classifier's, or the network's own (``dnn_``)."""
AS_MEASURED = {*get_args(TimingMetric), *get_args(CostMetric), *get_args(StudyMetric)}
"""Metrics that are not fractions to be shown in percent."""
EXACT = {"dnn_clean_accuracy", "times_work", "times_passes", "passes_per_image"}
"""Metrics that no trial changes."""

VERDICTS = (
    *("reproduced", "direction only", "not reproduced", "undecided", "inconsistent in the paper", "not evaluated"),
    *("holds on stand-in data", "does not hold on stand-in data", "undecided on stand-in data"),
)
"""What a run can say about a claim of the paper."""

SHADES = (1.0, 3.0, 10.0)
"""Differences (points) from which a cell is shaded lightly, clearly and strongly."""
MOST_DECIMALS = 2
"""The paper's own precision, and one image in ten thousand."""

THE_RUN_S = ", with the run's --configfile"
PLUS_MINUS = "\N{PLUS-MINUS SIGN}"
MINUS = "\N{MINUS SIGN}"


class MissingValueError(AskError):
    """A number that no cell on disk holds; the message says which cell and how to make it."""


class EmptyGroupError(MissingValueError):
    """A measure of a group of images that has no member, such as the failures of an attack that never failed."""


def collect(job: Json, run: Run, *, skip: type[MissingValueError] | tuple[()] = ()) -> pd.DataFrame:
    """All numbers of a table or plot, one a row, in the job's order: what everything shown of them is made from.

    Columns are the settings, then ``artifact``, those of `lookup`, the paper's, the references to what was read
    (`write_reference`; ``beside``: all but the first) and `PLACES`. They hold objects (8 is not 8.0), None means none.
    As text there are ``measured``, ``paper`` and ``difference`` (empty where there is none), and the ``shade`` of the
    difference: ``above-2``, ``below-1``; empty when small. Numbers that raise ``skip`` are left out; others raise
    MissingValueError where a cell has not been measured.
    """
    columns = [*(name for entry, _ in entries(job) for name in entry["columns"]), *SETTING_COLUMNS, *_OWN]
    rows = []
    for entry, place in entries(job):
        try:
            found = lookup(entry, run)
        except skip:
            continue
        found |= {"artifact": job["id"], "paper_mean": entry.get("paper_mean"), "paper_ci95": entry.get("paper_ci95")}
        found["reference"] = write_reference(entry)
        found["over"] = found["beside"] = [write_reference(one) for one in _each(entry)[1:]] or None
        if "baseline" in entry:
            base = [write_reference(one) for one in _each({**entry, "over": (), **entry["baseline"]})]
            found |= {"baseline": base[0], "beside": [*base, *(found["over"] or ())]}
        rows.append({**dict.fromkeys(columns), **entry["columns"], **found, **place})
    numbers = pd.DataFrame(rows, columns=list(dict.fromkeys(columns)), dtype=object)
    mean, ci95, paper, paper_ci95 = (numbers[name] for name in ("mean", "ci95", "paper_mean", "paper_ci95"))
    comparable = paper.notna() & job.get("comparable", True)
    points = [m - p if c else None for m, p, c in zip(mean, paper, comparable, strict=True)]
    return numbers.assign(
        measured=list(map(format_value, mean, ci95)),
        paper=list(map(format_published, paper, paper_ci95)),
        difference=list(map(format_difference, points)),
        shade=list(map(shade, points)),
    )


def entries(job: Json) -> Iterator[tuple[Json, Json]]:
    """Entries of a table or plot, each with its place there."""
    for entry in job.get("entries", ()):
        yield entry, {"row": entry["row"], "column": entry["column"]}
    for axes, panel in enumerate(job.get("panels", ())):
        for line in panel["lines"]:
            for point in line["points"]:
                yield point["entry"], {"axes": axes, "panel": panel["title"], "line": line["label"], "x": point["x"]}


def lookup(entry: Json, run: Run) -> dict[str, Any]:
    """Measured value of an entry, in percent, milliseconds or seconds; with a baseline, the difference to it.

    Trials share reference sets, random starts and images, so a difference is taken trial by trial and image by image,
    and so is its interval (model by model, where several were trained).

    Returns:
        ``mean`` over trials; ``ci95``, the half width of its 95% interval, which counts images, trials and trainings
        (trials alone where nothing is kept by image; None of a single one); ``ci95_trials``, that over trials alone
        (trainings, where there are several, paired by seed); ``trials``, and ``values`` by trial (by training).

    Raises:
        MissingValueError: the cell's file is not there, or holds no such classifier or metric.
        EmptyGroupError: in some trial no image is of the kind that the metric describes.
    """
    both = [entry] + ([{"over": (), **entry, **entry["baseline"]}] if "baseline" in entry else [])
    found, trials = [], []
    for one in both:  # over trials or, where an entry names several models, over models
        of_models = [_statistic(each, run) for each in _each(one)]
        trials += [len(model["trials"]) for model in of_models]
        found.append(summarise(model["mean"] for model in of_models) if len(of_models) > 1 else of_models[0])
    measured = found[0]
    if "baseline" in entry:
        # One cell may serve another artifact with more trials; the first ones are the same.
        measured = summarise(a - b for a, b in zip(*(one["trials"] for one in found), strict=False))
    scale = 1 if entry["metric"] in AS_MEASURED else 100
    values = tuple(scale * value for value in measured["trials"])
    alone = ci95 = None if measured["ci95"] is None else scale * measured["ci95"]
    terms = []
    for sign, one, statistic in zip((1.0, -1.0), both, found, strict=False):
        right = [read_predictions(write_reference(each), entry["metric"], run) for each in _each(one)]
        by_image = join_predictions(right, [scale * value for value in statistic["trials"]])
        terms.append((sign, {"model": one["cell"]["model"], "metric": entry["metric"]}, by_image))
    if all(by_image.shape[2] > 1 for _, _, by_image in terms):
        ci95 = estimate(terms)[0].half_width
    return {
        "mean": scale * measured["mean"],
        "ci95": ci95,
        "ci95_trials": alone,
        "trials": min(trials),
        "values": values,
    }


def _each(entry: Json) -> list[dict[str, Any]]:
    """An entry of each model that it reads: that of its own cell, and those of the cells in ``over``."""
    return [{**entry, "cell": cell} for cell in (entry["cell"], *(entry.get("over") or ()))]


def read_predictions(reference: str, metric: str, run: Run) -> NDArray[Any] | None:
    """100 where a prediction is right, else 0, trials x images, or a group's measure; None where nothing is kept."""
    name, classifier = read_reference(reference)
    path = run.cell(*name.split("/")).with_suffix(".npz")
    if not path.is_file() or (metric not in METRICS and "." not in metric):
        return None
    of_dknn = metric.startswith("dknn_")
    with np.load(path) as stored:
        if "." in metric:  # of failures or successes
            return np.asarray(stored[metric]) * 100
        kinds = ("clean", "robust") if METRICS[metric] == "kept" else (METRICS[metric],)
        names = ["network_" * (not of_dknn) + kind for kind in kinds]
        right = [stored[kept] == stored["labels"] for kept in names]
    if of_dknn:
        content = load_cell(name, run)
        place = content["results"].index(find_result(content, classifier))
        right = [each[place] for each in right]
    return np.atleast_2d(np.logical_and.reduce(right)) * np.uint8(100)


def join_predictions(right: Sequence[NDArray[Any] | None], trials: Sequence[float]) -> NDArray[Any]:
    """A number in the unit shown: trainings x trials x images; one mean over images where these are not all kept.

    Args:
        right: of each training (`read_predictions`); of different numbers of trials, the first common ones count.
        trials: the mean of each trial; of several trainings, of each of these, as only the mean over trials is known.
    """
    means = np.reshape(trials, (len(right), -1, 1))
    kept = [one for one in right if one is not None]
    if len(kept) == len(right):
        known = kept[0].mean(1) if len(kept) == 1 else np.array([one.mean() for one in kept])
        if known.size == means.size and np.allclose(known.ravel(), means.ravel()):
            return np.stack([one[: min(map(len, kept))] for one in kept])  # the first trials are the same
    return means


def estimate(
    terms: Sequence[tuple[float, Json, NDArray[Any]]], population: float = math.inf
) -> tuple[Estimate, int | None]:
    """A sum of numbers on one data set, paired by trial and image, and within a model by training.

    Args:
        terms: coefficients, numbers (``metric`` and ``model``) and their values (`join_predictions`); of different
            numbers of trials, the first common ones count.
        population: see `ask.statistics.Estimate`.

    Returns:
        The estimate, and the number of trials; None where no trial changes it.
    """
    varying = (v.shape[1] for _, row, v in terms if row["metric"] not in EXACT and (len(v) == 1 or v.shape[1] > 1))
    trials = min(varying, default=None)
    by_image = len({values.shape[2] for _, _, values in terms}) == 1
    models: dict[str, Any] = {}
    for factor, row, found in terms:
        values = factor * (found if by_image else found.mean(2, keepdims=True))[:, :trials]
        models[row["model"]] = models.get(row["model"], 0.0) + values
    means = [values.mean((1, 2)) for values in models.values() if len(values) > 1]
    trainings = tuple((float(each.var(ddof=1)) / len(each), len(each)) for each in means)
    mean = sum(values.mean(0) for values in models.values())
    return over_trials_and_images(mean, population, trainings), trials


def _statistic(entry: Json, run: Run) -> dict[str, Any]:
    """Mean, interval and trials of an entry, as its cell holds them."""
    name, wanted, metric = _name(entry["cell"]), entry["classifier"], str(entry["metric"])
    content, kept = load_cell(name, run), METRICS.get(metric, metric)
    result = content.get("network", {}) if metric.startswith("dnn_") else find_result(content, wanted)
    record = run.cell(*name.split("/"))
    again = f"make it again: snakemake --cores all --force {record}{THE_RUN_S}"
    if metric == "dknn_kept_accuracy" and kept not in result and result:  # an older record
        if (right := read_predictions(write_reference(entry), metric, run)) is None:
            raise MissingValueError(f"{record.with_suffix('.npz')} is missing; {again}")
        result = {kept: summarise((right > 0).mean(1))}
    if kept in result and result[kept] is None:
        raise EmptyGroupError(f"{name}: in some trial no image is among the {metric.partition('.')[0]}")
    if kept not in result:
        of = ", ".join(f"{key} {'+'.join(v) if isinstance(v, list) else v}" for key, v in wanted.items())
        raise MissingValueError(f"{name} holds no {metric} of {of or 'the network'}; {again}")
    return dict(result[kept])


def load_cell(name: str, run: Run) -> dict[str, Any]:
    """Everything that the cell ``dataset/model/id`` measured; raises MissingValueError where its file is not there."""
    path = run.cell(*name.split("/"))
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise MissingValueError(
            f"cell {name} has not been measured: {path} is missing; make it: snakemake --cores all {path}{THE_RUN_S}"
        ) from None


def find_result(cell: Json, classifier: Json) -> Json:
    """What a cell measured with one classifier (similarity, layers, K); nothing when it was not asked to."""
    found = (result for result in cell["results"] if all(result.get(key) == v for key, v in classifier.items()))
    return next(found, {})


def _name(cell: Json) -> str:
    return f"{cell['dataset']}/{cell['model']}/{cell['id']}"


def write_reference(entry: Json) -> str:
    """One word for "this classifier's numbers in this cell": ``digits/at/ask-cos-L3#cosine/conv3/5``.

    Rendered tables and figures carry these, so that the report finds the cells behind what was really drawn.
    """
    classifier = entry["classifier"]
    layers = "+".join(classifier.get("layers", ()))
    words = f"{classifier['similarity']}/{layers}/{classifier['k']}" if layers else ""
    return f"{_name(entry['cell'])}#{words}"


def read_reference(text: str) -> tuple[str, dict[str, Any]]:
    """Name of the cell, and classifier (empty where there is none), of `write_reference`."""
    name, _, classifier = text.partition("#")
    if not classifier:
        return name, {}
    similarity, layers, k = classifier.split("/")
    return name, {"similarity": similarity, "layers": layers.split("+"), "k": int(k)}


def format_parts(mean: float, ci95: float | None) -> tuple[str, str | None]:
    """Mean and half width as text, with the decimals of two significant digits of the interval: ``("35.12", "0.18")``.

    Without an interval there is one decimal, and there are never more than `MOST_DECIMALS`.
    """
    decimals = 1 if ci95 is None else MOST_DECIMALS
    if ci95:
        # Rounded first: an interval of 0.996 is 1.0, which takes one decimal, not two.
        decimals = min(max(1 - math.floor(math.log10(float(f"{ci95:.1e}"))), 0), MOST_DECIMALS)
    mean = round(mean, decimals) + 0.0  # no minus before a zero
    return f"{mean:.{decimals}f}", None if ci95 is None else f"{ci95:.{decimals}f}"


def format_value(mean: float, ci95: float | None) -> str:
    """``35.12±0.18``; without an interval ``35.1``; with a true minus sign."""
    return PLUS_MINUS.join(filter(None, format_parts(mean, ci95))).replace("-", MINUS)


def format_published(mean: float | None, ci95: float | None) -> str:
    """The paper's value with the digits it was printed with: ``41±0.19``; empty where it has none."""
    return PLUS_MINUS.join(f"{value:g}" for value in (mean, ci95) if value is not None)


def format_difference(points: float | None) -> str:
    """Signed percentage points, with a true minus sign: ``+1.3``, ``−0.4``, ``0.0``; empty for None."""
    if points is None:
        return ""
    text = f"{abs(points):.1f}"
    return text if text == "0.0" else ("+" if points > 0 else MINUS) + text


def shade(points: float | None) -> str:
    """Class of a difference: ``above-2``, ``below-1``; empty when small."""
    level = sum(abs(points or 0) >= threshold for threshold in SHADES)
    return f"{'above' if (points or 0) > 0 else 'below'}-{level}" if level else ""


def format_plain(value: object) -> str:
    """A value for a CSV cell: nothing for None, and no digits beyond the fourth decimal."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{round(value, 4):.10g}"
    return str(value)


def write_csv(path: Path, columns: Sequence[str], rows: pd.DataFrame | Iterable[Json]) -> Path:
    """Write these columns of rows, as `format_plain` has them, with Unix line ends: the same on every machine."""
    rows = rows if isinstance(rows, pd.DataFrame) else list(rows)
    frame = pd.DataFrame(rows, columns=list(columns), dtype=object).map(format_plain, na_action="ignore")
    return write(path, lambda part: frame.to_csv(part, index=False, lineterminator="\n"))


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV as it stands: text alone, ``""`` where a cell is empty."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def write_numbers(path: Path, numbers: pd.DataFrame, *more: str) -> list[Path]:
    """Write the numbers of `collect` as CSV, with ``more`` columns, and as JSON, one a line, for claims.

    The JSON holds the trials themselves and what they were read from.
    """
    settings = numbers.columns[: numbers.columns.get_loc("artifact")]
    lines = []
    for number in numbers.to_dict("records"):
        known = {name: value for name, value in number.items() if value is not None}
        about = {"columns": {name: known[name] for name in settings if name in known}, "trials": number["values"]}
        about |= {name: known[name] for name in ("reference", "baseline", "over", "line", "x") if name in known}
        lines.append(json.dumps(about, ensure_ascii=False))
    return [
        write_csv(path, (*COLUMNS, *more), numbers),
        write_text(path.with_suffix(".json"), "[\n" + ",\n".join(lines) + "\n]\n"),
    ]
