"""What an artifact was measured with, in words: said beside it from the cells themselves, never from its caption."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pandas as pd

from ask.config.artifacts import SETTING_COLUMNS
from ask.config.stored import current
from ask.report.numbers import Json, format_plain

WORDS = {
    "dataset": "data set",
    "model": "training",
    "attack_layers": "attacked layers",
    "classifier_similarity": "DkNN's similarity",
    "dknn_layers": "DkNN layers",
    "k_in": "K in class",
    "k_out": "K out of class",
    "classifier_k": "classifier K",
    "eps": "ε",
    "about": "case",
}
"""Columns of a tidy CSV in words, where not as they are."""
NOT_COMPARABLE = "Not comparable: measured on stand-in data; the paper's values are of its own data sets."
NAMES = {
    "at": "AT",
    "at-snn": "AT+SNN",
    "ask-def": "ASK-Def",
    "trades": "TRADES",
    "ask-def-trades": "ASK-Def(TRADES)",
    "raw": "none (raw pixels)",
    "none": "none (clean)",
    "ask": "ASK-Atk",
    "advknn": "AdvKnn",
    "dknn": "DkNN-Atk",
    "pgd": "PGD on the network",
    "autoattack": "AutoAttack",
    "vgg16": "VGG16",
    "resnet18": "ResNet18",
} | {f"conv{i}": f"Conv {i}" for i in range(1, 6)}
"""How a value reads, where not as it is."""
ALWAYS = {"dataset", "classifier_k", "eps", "steps", "trials"}
"""Columns that are told even where they vary; of others, a table's headers say what varies."""
FEW = 4
"""Up to so many values are listed; of more, the lowest and the highest."""


def settings_of(rows: pd.DataFrame, cells: Iterable[Json], labels: Mapping[str, str]) -> list[tuple[str, str]]:
    """Settings of an artifact's numbers, as pairs of words: what all share, and what must be known to read them.

    ``rows`` have the columns of their CSV, ``cells`` are the records that hold them, ``labels`` those of data sets.
    """
    found: dict[str, str] = {}
    for column in rows.columns.intersection([*SETTING_COLUMNS, "trials"], sort=False):
        asked = [format_plain(value) for value in rows[column].unique()]
        values = [value for value in asked if value and not (value == "0" and column in ("eps", "steps"))]
        if values and (len(asked) == 1 or column in ALWAYS):
            unit = "/255" if column == "eps" else ""
            found[WORDS.get(column, column)] = listed((labels.get(value, worded(value)) for value in values), unit)
    if found.get("similarity") == found.get(WORDS["classifier_similarity"]):
        found.pop(WORDS["classifier_similarity"], None)
    records = list(cells)
    jobs, analyses = list(_jobs(records)), [cell["job"] for cell in records if "gap_k" in (cell.get("job") or {})]
    steps = [f"{job['attack']['step_size']:g}" for job in jobs if (job.get("attack") or {}).get("step_size")]
    networks = [job["features"]["network"] for job in jobs if job["features"].get("network")]
    numbers = {
        "network": listed(map(_network, networks)),
        "step size": listed(steps, "/255"),
        "references a class": listed(f"{job['references_per_class']:,}" for job in jobs if job.get("classifiers")),
        "references for confidence": listed(str(job["confidence_k"]) for job in analyses),
        "references for the gap": listed(str(job["gap_k"]) for job in analyses),
        "test images": listed(f"{job['test_images']:,}" if job["test_images"] else "all" for job in jobs),
    }
    return list((found | {name: text for name, text in numbers.items() if text}).items())


def sentence(settings: Iterable[tuple[str, str]]) -> str:
    """The settings below a caption: ``Measured with: data set CIFAR-10; ε 8/255; trials 20.``; nothing of none."""
    words = "; ".join(f"{name} {value}" for name, value in settings)
    return f"Measured with: {words}." if words else ""


def notice(job: Json, numbers: pd.DataFrame) -> str:
    """What has to stand beside the paper's values where the numbers are of other data; otherwise nothing."""
    if job.get("comparable", True) or "paper_mean" not in numbers:
        return ""
    return NOT_COMPARABLE if any(value not in (None, "") for value in numbers["paper_mean"]) else ""


def noted(job: Json, numbers: pd.DataFrame, *columns: str) -> tuple[Any, ...]:
    """Numbers and what their CSV has besides the usual columns: those given, and the notice if there is one."""
    said = notice(job, numbers)
    return (numbers.assign(notice=said), *columns, "notice") if said else (numbers, *columns)


def worded(value: str) -> str:
    """A setting's value as the reader knows it: ``conv3+conv4`` reads "Conv 3+Conv 4"."""
    if value in NAMES:
        return NAMES[value]
    if value.startswith("conv"):
        return "+".join(NAMES.get(layer, layer) for layer in value.split("+"))
    return value.replace("dnn_", "network ").replace("_", " ").replace("dknn", "DkNN")


def listed(values: Iterable[str], unit: str = "") -> str:
    """Different values in words, numbers in order: ``1/255, 4/255``; of many, from where to where."""
    texts = list(dict.fromkeys(values))
    with suppress(ValueError):  # words keep their order
        texts.sort(key=lambda text: float(text.replace(",", "")))
    if len(texts) > FEW and texts[0][0].isdigit():
        return f"{texts[0]}{unit} to {texts[-1]}{unit}"
    return ", ".join(f"{text}{unit}" for text in texts)


def _network(spec: Json) -> str:
    options = ", ".join(f"{name} {value}" for name, value in spec.get("options", {}).items())
    width = spec.get("width", 1)
    if factory := spec.get("factory"):
        return f"{factory} ({options})" if options else str(factory)
    share = f"1/{1 / width:g}" if (1 / width).is_integer() else f"{width:g}"
    return worded(spec["name"]) + ("" if width == 1 else f" at width {share}")


def _jobs(cells: Iterable[Json]) -> Iterator[dict[str, Any]]:
    """Measurements of features behind records: attacks, and those that an analysis reads."""
    for cell in cells:
        job = current(cell.get("job") or {})
        yield from (
            one for one in job.get("cells") or [job.get("cell") or job] if "features" in one and "trials" in one
        )
