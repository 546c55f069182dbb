"""A run in a few facts: its configuration, where and with what it ran, and where its time went."""

from collections.abc import Iterable, Mapping
from typing import Any

from ask.paths import Run
from ask.report.values import Json

STAGES = {
    "models": "training",
    "index": "indexes",
    "calibration": "calibration",
    "blocks": "AdvKnn's blocks",
    "cells": "attacks and analyses",
    "examples": "pictures",
    "tables": "tables",
    "figures": "figures",
}
"""Folders of benchmark files, by what was done there."""


def summarise(configuration: Mapping[str, Any], cells: Iterable[Json]) -> list[tuple[str, str]]:
    """Facts of the run: its configuration as given, and where, with what and for how long the cells ran."""
    facts = [(key.replace("_", " "), in_text(value)) for key, value in configuration.items()]
    seen = list(cells)
    hardware = dict.fromkeys(cell["hardware"] for cell in seen if cell.get("hardware"))
    versions: dict[str, dict[str, None]] = {}
    for cell in seen:
        for name, version in cell.get("versions", {}).items():
            versions.setdefault(name, {})[version] = None
    seconds = sum((cell.get("seconds") or {}).get("total") or 0.0 for cell in seen)
    facts += [
        ("hardware", "; ".join(hardware)),
        ("versions", ", ".join(f"{name} {' and '.join(found)}" for name, found in versions.items())),
        ("compute", f"{duration(seconds)} ({seconds:,.0f} s) in {len(seen)} cell{'s' * (len(seen) != 1)}"),
    ]
    return [(key, value) for key, value in facts if value]


def stages(run: Run) -> list[tuple[str, int, float]]:
    """Stages of the run with their jobs and wall-clock seconds, from the benchmark files that Snakemake wrote."""
    found = []
    for folder, words in STAGES.items():
        seconds = [_seconds(path.read_text()) for path in (run.root / "benchmarks" / folder).rglob("*.tsv")]
        if seconds:
            found.append((words, len(seconds), sum(seconds)))
    return found


def _seconds(benchmark: str) -> float:
    header, values = (line.split("\t") for line in benchmark.splitlines()[:2])
    return float(dict(zip(header, values, strict=True))["s"])


def in_text(value: object) -> str:
    """A configuration value in a few words: ``{"label": ..., "note": ...}`` reads "label (note)"."""
    if value is None or value == "":
        return ""
    if isinstance(value, Mapping):
        rest = dict(value)
        if "label" in rest:
            label, others = in_text(rest.pop("label")), [text for text in map(in_text, rest.values()) if text]
            return f"{label} ({'; '.join(others)})" if others else label
        return ", ".join(f"{key}: {in_text(item)}" for key, item in rest.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(in_text, value))
    return str(value)


def duration(seconds: float) -> str:
    """``42 s``, ``3 min 20 s``, ``5 h 12 min``."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 9.5 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
