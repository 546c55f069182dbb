"""What lies behind the numbers of an artifact: its cells, their settings, and whether they can be trusted."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ask.artifacts.values import Json, cell_named, find_result, load_cell, read_reference
from ask.paths import Run

MOST_ZERO_GRADIENTS = 0.01
"""Share of images without any gradient beyond which an attack may only seem to fail."""

LEAST_CLEAN_ACCURACY = 0.5
"""Clean accuracy of a classifier below which its robust accuracy says little."""

SETTINGS = {
    "dataset": "data set",
    "model": "model",
    "attack": "attack",
    "variant": "variant",
    "similarity": "similarity",
    "attack_layers": "attacked layers",
    "dknn_layers": "DkNN layers",
    "k_in": "K in class",
    "k_out": "K out of class",
    "classifier_k": "classifier K",
    "eps": "ε",
    "steps": "steps",
    "about": "case",
    "metric": "metric",
    "trials": "trials",
}
"""Columns of a tidy CSV that describe a setting, by the words for it."""

Row = Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """One cell of an artifact, as text for the page."""

    name: str
    trials: int
    parameters: str
    attack_seconds: float
    total_seconds: float
    max_linf: str
    zero_gradients: str
    device: str
    command: str


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a tidy CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def common_settings(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Settings that all numbers of an artifact share; those that vary are in its headers."""
    shared = []
    for column, words in SETTINGS.items():
        values = {row.get(column, "") for row in rows}
        if len(values) == 1 and (value := values.pop()):
            shared.append(
                (
                    words,
                    f"{value}/255"
                    if column == "eps"
                    else value.replace("dnn_", "network ").replace("_", " ").replace("dknn", "DkNN"),
                )
            )
    return shared


def load_cells(references: Iterable[str], run: Run) -> dict[str, dict[str, Any]]:
    """The cells that references name, once each, by ``dataset/model/id``."""
    names = dict.fromkeys(reference.partition("#")[0] for reference in references)
    return {name: load_cell(cell_named(name), run) for name in names}


def describe(name: str, cell: Json) -> Cell:
    """A cell in the page's words."""
    validity = cell.get("validity") or {}
    seconds = cell.get("seconds") or {}
    return Cell(
        name=name,
        trials=max((len(r["trials"]) for r in _statistics(cell)), default=0),
        parameters=_parameters(cell.get("setting", cell)),
        attack_seconds=seconds.get("attack") or 0.0,
        total_seconds=seconds.get("total") or 0.0,
        max_linf="–" if validity.get("max_linf") is None else f"{validity['max_linf']:.4g}",
        zero_gradients="–" if validity.get("zero_gradient_share") is None else f"{validity['zero_gradient_share']:.2%}",
        device=cell.get("device", ""),
        command=cell.get("command", ""),
    )


def _statistics(cell: Json) -> Iterable[Json]:
    """Everything that a cell measured over trials."""
    for result in (*cell["results"], cell.get("network") or {}):
        yield from (value for value in result.values() if isinstance(value, Mapping) and "trials" in value)


def warn(references: Iterable[str], cells: Mapping[str, Json]) -> list[str]:
    """Reasons to doubt the numbers that references name, in words."""
    warnings = []
    for reference in references:
        name = reference.partition("#")[0]
        cell = cells[name]
        share = (cell.get("validity") or {}).get("zero_gradient_share")
        if share is not None and share > MOST_ZERO_GRADIENTS:
            warnings.append(
                f"{name}: {share:.1%} of the images had no gradient, so the attack may only seem to fail "
                f"(at most {MOST_ZERO_GRADIENTS:.0%} expected)"
            )
        network = (cell.get("network") or {}).get("clean")
        if network and network["mean"] < LEAST_CLEAN_ACCURACY:
            warnings.append(
                f"{name}: clean accuracy of the network is {network['mean']:.1%}, below {LEAST_CLEAN_ACCURACY:.0%}, "
                "so its features may not separate the classes"
            )
        classifier = read_reference(reference)[1]
        clean = (find_result(cell, classifier) or {}).get("clean") if classifier else None
        if clean and clean["mean"] < LEAST_CLEAN_ACCURACY:
            warnings.append(
                f"{name}: clean accuracy of the DkNN ({classifier['similarity']}, {'+'.join(classifier['layers'])}, "
                f"K={classifier['k']}) is {clean['mean']:.1%}, below {LEAST_CLEAN_ACCURACY:.0%}, "
                "so its robust accuracy says little"
            )
    return list(dict.fromkeys(warnings))


def _parameters(setting: Json) -> str:
    """Calibrated parameters, with ``omega`` only where several layers share the loss."""
    found = []
    for name, words in (("tau", "τ"), ("omega", "ω"), ("alpha", "α"), ("learning_rate", "learning rate")):
        value = setting.get(name)
        if isinstance(value, Mapping) and (name == "tau" or len(value) > 1):
            found.append(f"{words} " + ", ".join(f"{layer} {v:g}" for layer, v in value.items()))
        elif isinstance(value, int | float):
            found.append(f"{words} {value:g}")
    return "; ".join(found) or "–"
