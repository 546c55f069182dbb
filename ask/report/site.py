"""The report of a run: an index with the claims ledger, and a page for every artifact with the evidence behind it.

The site needs nothing but its folder: no network, and its script only sorts and filters what is there without it. It
reads what the other steps wrote, so that it can never show anything else than the files beside it.
"""

import re
import statistics
from collections.abc import Iterable, Mapping
from html import escape, unescape
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ask.paths import Run
from ask.report.columns import VERDICTS
from ask.report.evidence import common_settings, describe, load_cells, read_rows, warn
from ask.report.inline import (
    accuracies_in_words,
    in_words,
    inline_svg,
    pictures_in_words,
    svg_references,
    value_table,
)
from ask.report.summary import duration, in_text, stages, summarise
from ask.report.values import Json, MissingValueError, write_text

TEMPLATES = Path(__file__).parent / "templates"
ASSETS = ("style.css", "script.js")

DOWNLOADS = {"table": ("csv", "json", "md", "tex", "html")}
DRAWN = ("csv", "json", "svg", "png", "pdf")

NUMBER = re.compile(
    r'(<td class="value[^"]*" data-cell="([^"]*)">)(<span class="measured">.*?</span>)(?= <span class="paper">|</td>)'
)
"""A number of a rendered table: what opens it, its reference, itself."""


def render_report(job: Json, run: Run) -> list[Path]:
    """Write the index, a page for each artifact, and what they share; pages of artifacts that are gone go.

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
    cells: dict[str, dict[str, Any]] = {}
    categories: dict[str, list[dict[str, Any]]] = {}
    for artifact in job["artifacts"]:
        shown = show(artifact, run, cells, job.get("configfile", ""))
        categories.setdefault(artifact["category"], []).append(shown)
    artifacts = [shown for group in categories.values() for shown in group]
    common = {
        "run": job["run"],
        "title": job["title"],
        "stand_ins": in_text(configuration.pop("stand_ins", None)),
        "names": {shown["id"]: shown["paper"] or shown["title"] for shown in artifacts},
    }
    index = environment.get_template("index.html.j2").render(
        **common,
        note=job.get("note"),
        claims=read_claims(run),
        verdicts=VERDICTS,
        summary=summarise(configuration, cells.values()),
        stages=stages(run),
        glance=None if common["stand_ins"] else compare(shown for shown in artifacts if shown["paper"]),
        numbers=sum(len(shown["rows"]) for shown in artifacts if shown["kind"] != "pictures"),
        categories=categories,
        warnings=gather_warnings(artifacts),
    )
    folder = run.report.parent
    pages = {run.report: index}
    template = environment.get_template("artifact.html.j2")
    for position, shown in enumerate(artifacts):
        neighbours = {
            "before": artifacts[position - 1] if position else None,
            "after": artifacts[position + 1] if position + 1 < len(artifacts) else None,
        }
        pages[folder / f"{shown['id']}.html"] = template.render(**common, artifact=shown, **neighbours)
    for old in set(folder.glob("*.html")) - set(pages):
        old.unlink()
    assets = {folder / name: (TEMPLATES / name).read_text(encoding="utf-8") for name in ASSETS}
    return [write_text(path, text) for path, text in (pages | assets).items()]


def show(artifact: Json, run: Run, cells: dict[str, dict[str, Any]], configfile: str = "") -> dict[str, Any]:
    """What the template needs of one artifact; the cells behind it are added to ``cells``."""
    kind = artifact["kind"]
    table = kind == "table"
    path = (run.table if table else run.figure)(artifact["id"])
    drawn = path.with_suffix(".html" if table else ".svg")
    for needed in (path, drawn):
        if not needed.is_file():
            raise MissingValueError(
                f"{kind} {artifact['id']} has not been rendered: {needed} is missing; "
                f"make it: snakemake --cores all {needed}"
            )
    rows, text = read_rows(path), drawn.read_text(encoding="utf-8")
    references = table_references(text) if table else svg_references(text)
    behind = load_cells(references, run)
    cells.update(behind)
    evidence = [describe(name, cell, run, configfile) for name, cell in behind.items()]
    if table:
        body = linked(text, {cell.name: cell.anchor for cell in evidence})
    else:
        words = {"figure": in_words, "pictures": pictures_in_words, "boundaries": accuracies_in_words}[kind](rows)
        body = inline_svg(text, prefix=artifact["id"], words=words)
    return {
        **{key: artifact.get(key) for key in ("id", "kind", "title", "caption", "paper", "category")},
        "notes": artifact.get("notes") or [],
        "body": Markup(body),
        "rows": rows,
        "drawn": value_table(rows) if kind == "figure" else [],
        "settings": common_settings(rows),
        "has_paper": any(row.get("paper_mean") for row in rows),
        "cells": evidence,
        "warnings": warn(references, behind),
        "downloads": [
            (suffix, f"../{path.parent.name}/{path.stem}.{suffix}")
            for suffix in DOWNLOADS.get(kind, DRAWN)
            if path.with_suffix(f".{suffix}").is_file()
        ],
    }


def table_references(text: str) -> list[str]:
    """Cells behind a table, which its numbers name."""
    return list(dict.fromkeys(unescape(name) for name in re.findall(r'data-cell="([^"]*)"', text)))


def linked(text: str, anchors: Mapping[str, str]) -> str:
    """A rendered table, each number a link to the cell that measured it."""

    def link(found: re.Match[str]) -> str:
        cell = unescape(found[2]).partition("#")[0]
        return f'{found[1]}<a href="#{anchors[cell]}" title="measured by {escape(cell)}">{found[3]}</a>'

    return NUMBER.sub(link, text)


def read_claims(run: Run) -> list[dict[str, Any]]:
    """Rows of the claims ledger with their lists apart; none where the run has no ledger."""
    if not run.claims.is_file():
        return []
    lists = ("artifacts", "cells")
    return [row | {name: row[name].split() for name in lists} for row in read_rows(run.claims)]


def gather_warnings(artifacts: Iterable[Json]) -> dict[str, list[Json]]:
    """Every warning of the pages, with the artifacts that it touches."""
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
