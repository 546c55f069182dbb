"""The report of a run: one page that holds every artifact, the paper's values beside the measured, and the evidence.

The page needs nothing but itself: styles and drawings are inline, no script, no network. It reads what the table and
figure steps wrote, so that it can never show anything else than the files beside it.
"""

import re
import statistics
from collections.abc import Iterable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ask.artifacts.evidence import Cell, common_settings, describe, load_cells, read_rows, warn
from ask.artifacts.inline import in_words, inline_svg, pictures_in_words, svg_references, value_table
from ask.artifacts.values import Json, MissingValueError, write_text
from ask.paths import Run

TEMPLATES = Path(__file__).parent / "templates"

DOWNLOADS = {"table": ("csv", "md", "tex", "html"), "figure": ("csv", "svg", "png", "pdf")}
DOWNLOADS["pictures"] = DOWNLOADS["figure"]


def render_report(job: Json, run: Run) -> list[Path]:
    """Write the report page.

    Raises:
        MissingValueError: a table, a figure or a cell behind it is not on disk.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        # File names end in .html.j2, which jinja2 would not know for HTML.
        autoescape=select_autoescape(enabled_extensions=("html", "html.j2")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    configuration = dict(job.get("configuration") or {})
    stand_ins = in_text(configuration.pop("stand_ins", None))
    cells: dict[str, dict[str, Any]] = {}
    categories: dict[str, list[dict[str, Any]]] = {}
    for artifact in job["artifacts"]:
        shown = show(artifact, run, cells)
        categories.setdefault(artifact["category"], []).append(shown)
    artifacts = [shown for group in categories.values() for shown in group]
    page = environment.get_template("report.html.j2").render(
        run=job["run"],
        title=job["title"],
        note=job.get("note"),
        stand_ins=stand_ins,
        summary=summarise(configuration, cells.values()),
        glance=None if stand_ins else compare(shown for shown in artifacts if shown["paper"]),
        numbers=sum(len(shown["rows"]) for shown in artifacts if shown["kind"] != "pictures"),
        categories=categories,
        warnings=gather_warnings(artifacts),
    )
    return [write_text(run.report, page)]


def show(artifact: Json, run: Run, cells: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the template needs of one artifact; the cells behind it are added to ``cells``."""
    table = artifact["kind"] == "table"
    path = (run.table if table else run.figure)(artifact["id"])
    drawn = path.with_suffix(".html" if table else ".svg")
    for needed in (path, drawn):
        if not needed.is_file():
            raise MissingValueError(
                f"{artifact['kind']} {artifact['id']} has not been rendered: {needed} is missing; "
                f"make it: snakemake --cores all {needed}"
            )
    rows, text = read_rows(path), drawn.read_text(encoding="utf-8")
    references = table_references(text) if table else svg_references(text)
    behind = load_cells(references, run)
    cells.update(behind)
    evidence: list[Cell] = [describe(name, cell) for name, cell in behind.items()]
    drawing = artifact["kind"] == "figure"
    words = "" if table else in_words(rows) if drawing else pictures_in_words(rows)
    body = text if table else inline_svg(text, prefix=artifact["id"], words=words)
    return {
        **{key: artifact.get(key) for key in ("id", "kind", "title", "caption", "paper")},
        "notes": artifact.get("notes") or [],
        "body": Markup(body),
        "rows": rows,
        "drawn": value_table(rows) if drawing else [],
        "settings": common_settings(rows),
        "has_paper": any(row.get("paper_mean") for row in rows),
        "cells": evidence,
        "warnings": warn(references, behind),
        "downloads": [
            (suffix, f"../{path.parent.name}/{path.stem}.{suffix}")
            for suffix in DOWNLOADS[artifact["kind"]]
            if path.with_suffix(f".{suffix}").is_file()
        ],
    }


def table_references(text: str) -> list[str]:
    """Cells behind a table, which its numbers name."""
    return list(dict.fromkeys(unescape(name) for name in re.findall(r'data-cell="([^"]*)"', text)))


def gather_warnings(artifacts: Iterable[Json]) -> dict[str, list[Json]]:
    """Every warning of the page, with the artifacts that it touches."""
    gathered: dict[str, list[Json]] = {}
    for shown in artifacts:
        for warning in shown["warnings"]:
            gathered.setdefault(warning, []).append(shown)
    return gathered


def compare(artifacts: Iterable[Json]) -> dict[str, float] | None:
    """How near the measured values of the paper's own artifacts are to its, in points; None when it has none."""
    rows = {
        tuple(value for column, value in row.items() if column not in {"artifact", "panel", "line", "x"}): row
        for shown in artifacts
        for row in shown["rows"]
        if row.get("paper_mean") and row["metric"].endswith("accuracy")
    }
    gaps = [abs(float(row["mean"]) - float(row["paper_mean"])) for row in rows.values()]
    if not gaps:
        return None
    return {
        "count": len(gaps),
        "median": statistics.median(gaps),
        "within": sum(gap < 3 for gap in gaps),
        "largest": max(gaps),
    }


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
