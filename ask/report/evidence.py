"""What lies behind the numbers of an artifact: its cells, their settings, and whether they can be trusted."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ask.paths import Run
from ask.report.values import Json, cell_named, find_result, load_cell, read_reference

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
    "classifier_similarity": "DkNN's similarity",
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
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """One cell of an artifact, as text for the page."""

    name: str
    anchor: str
    """Where the page describes it."""
    trials: int
    parameters: str
    attack_seconds: float
    total_seconds: float
    facts: list[tuple[str, str]]
    """What was run, with what and where, in words; only what the cell knows."""
    files: list[tuple[str, str]]
    """Its record, predictions, log and benchmark, as far as they are on disk: name and link from the page."""
    command: str
    """Measures it again without the workflow."""
    workflow: str
    """Measures it again within the workflow."""


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


def describe(name: str, cell: Json, run: Run, configfile: str = "") -> Cell:
    """A cell in the page's words."""
    validity = cell.get("validity") or {}
    seconds = cell.get("seconds") or {}
    trials = max((len(r["trials"]) for r in _statistics(cell)), default=0)
    parameters = _parameters(cell.get("setting", cell))
    job = cell.get("job") or {}
    path = run.cell(**dict(zip(("dataset", "model", "name"), name.split("/"), strict=True)))
    facts = {
        "attack": _attack(job.get("attack") or {}),
        "parameters": parameters if parameters != NOTHING else "",
        "references a class": job.get("references_per_class"),
        "test images": job.get("test_images"),
        "trials": trials,
        "seed": job.get("seed"),
        "largest change": None if validity.get("max_linf") is None else f"{255 * validity['max_linf']:.4g}/255",
        "images without gradient": _share(validity.get("zero_gradient_share")),
        "device": cell.get("device"),
        "hardware": cell.get("hardware"),
        "versions": ", ".join(f"{name} {version}" for name, version in (cell.get("versions") or {}).items()),
        "code": cell.get("code"),
    }
    again = f"snakemake --cores all --force {path}" + (f" --configfile {configfile}" if configfile else "")
    return Cell(
        name=name,
        anchor="cell-" + re.sub(r"[^A-Za-z0-9.-]", "-", name),
        trials=trials,
        parameters=parameters,
        attack_seconds=seconds.get("attack") or 0.0,
        total_seconds=seconds.get("total") or 0.0,
        facts=[(words, str(fact)) for words, fact in facts.items() if fact not in (None, "")],
        files=_files(path, run),
        command=cell.get("command", ""),
        workflow=again,
    )


def _files(path: Path, run: Run) -> list[tuple[str, str]]:
    relative = path.relative_to(run.root)
    places = {
        "record": path,
        "predictions": path.with_suffix(".npz"),
        "log": run.root / "logs" / relative.with_suffix(".log"),
        "benchmark": run.root / "benchmarks" / relative.with_suffix(".tsv"),
    }
    return [(name, f"../{file.relative_to(run.root)}") for name, file in places.items() if file.is_file()]


def _attack(attack: Json) -> str:
    """An attack's settings in a few words; nothing for clean images."""
    if not attack or attack.get("name") == "none":
        return ""
    layers = "+".join(attack.get("layers") or ())
    words = [attack["name"], attack.get("variant"), attack.get("similarity") if layers else "", layers]
    if layers:
        words.append(f"K {attack.get('k_in')} in and {attack.get('k_out')} out of class")
    words.append(f"ε {attack['eps']:g}/255, {attack['steps']} steps of {attack['step_size']:g}/255")
    return ", ".join(filter(None, words))


def _share(share: float | None) -> str | None:
    return None if share is None else f"{share:.2%}"


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
    return "; ".join(found) or NOTHING
