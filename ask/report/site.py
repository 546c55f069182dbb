"""The report of a run: an index with the claims ledger, and a page for every artifact with the evidence behind it.

The site needs nothing but its folder: no network, and its script only sorts and filters what is there without it. It
reads what the other steps wrote, so that it can never show anything else than the files beside it.
"""

import re
from collections.abc import Iterable
from html import escape, unescape
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ask.files import write_text
from ask.paths import Run
from ask.report.evidence import (
    anchor,
    common_settings,
    describe,
    duration,
    in_text,
    load_cells,
    stages,
    summarise,
    warn,
)
from ask.report.numbers import COLUMNS, VERDICTS, Json, MissingValueError, format_value, read_csv
from ask.report.plotting import inline_svg, svg_references

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
    for before, shown, after in zip([None, *artifacts], artifacts, [*artifacts[1:], None], strict=False):
        page = template.render(**common, artifact=shown, before=before, after=after)
        pages[folder / f"{shown['id']}.html"] = page
    for old in set(folder.glob("*.html")) - set(pages):
        old.unlink()
    assets = {folder / name: (TEMPLATES / name).read_text(encoding="utf-8") for name in ASSETS}
    return [write_text(path, text.rstrip("\n") + "\n") for path, text in (pages | assets).items()]


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
    rows, text = read_csv(path), drawn.read_text(encoding="utf-8")
    references = table_references(text) if table else svg_references(text)
    behind = load_cells(references, run)
    cells.update(behind)
    if table:
        body = linked(text)
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
        "has_paper": "paper_mean" in rows and rows["paper_mean"].any(),
        "cells": [describe(name, cell, run, configfile) for name, cell in behind.items()],
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


def linked(text: str) -> str:
    """A rendered table, each number a link to the cell that measured it."""

    def link(found: re.Match[str]) -> str:
        cell = unescape(found[2]).partition("#")[0]
        return f'{found[1]}<a href="#{anchor(cell)}" title="measured by {escape(cell)}">{found[3]}</a>'

    return NUMBER.sub(link, text)


def in_words(rows: pd.DataFrame) -> str:
    """What a line plot shows, for those who cannot see it: where each line begins and ends."""
    sentences = ["Line plot."]
    unit = "%" if rows["metric"].str.removesuffix("_gain").str.endswith("accuracy").all() else ""
    points = rows.astype({"x": float, "mean": float})
    for (panel, line), found in points.groupby(["panel", "line"], sort=False):
        ends = found.sort_values(["x", "mean"]).iloc[[0, -1]]
        first, last = (f"{mean:.1f}{unit} at {x:g}" for x, mean in zip(ends["x"], ends["mean"], strict=True))
        sentences.append(f"{panel + ', ' if panel else ''}{line}: from {first} to {last}.")
    return " ".join(sentences)


def pictures_in_words(rows: pd.DataFrame) -> str:
    """What the pictures show: for each attack, the DkNN's class and the neighbours' classes."""
    sentences = [f"An image of class {rows['class'][0]} and its nearest references."]
    for (line, column), found in rows.groupby(["row", "column"], sort=False):
        predicted, classes = found["predicted"].iloc[0], ", ".join(found["neighbour_class"])
        sentences.append(f"{line}, {column}: classified as {predicted}; neighbours of class {classes}.")
    return " ".join(sentences)


def accuracies_in_words(rows: pd.DataFrame) -> str:
    """What stands below decision boundaries: the accuracies of each model's classifiers."""
    found = [f"{row.model}, {row.classifier}, {row.images}: {float(row.mean):.0f}%." for row in rows.itertuples()]
    return " ".join(["Decision boundaries of a network and a kNN in the plane.", *found])


def value_table(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    """The drawn numbers as rows of text: panel, line, x, measured, paper."""
    pairs = zip(rows["mean"], rows["ci95"], strict=True)
    measured = [format_value(float(mean), float(ci95) if ci95 else None) for mean, ci95 in pairs]
    return rows.assign(measured=measured, paper=rows["paper_mean"]).to_dict("records")


def read_claims(run: Run) -> list[dict[str, Any]]:
    """Rows of the claims ledger with their lists apart; none where the run has no ledger."""
    if not run.claims.is_file():
        return []
    rows = read_csv(run.claims)
    return rows.assign(artifacts=rows["artifacts"].str.split(), cells=rows["cells"].str.split()).to_dict("records")


def gather_warnings(artifacts: Iterable[Json]) -> dict[str, list[Json]]:
    """Every warning of the pages, with the artifacts that it touches."""
    gathered: dict[str, list[Json]] = {}
    for shown in artifacts:
        for warning in shown["warnings"]:
            gathered.setdefault(warning, []).append(shown)
    return gathered


def compare(artifacts: Iterable[Json]) -> dict[str, float] | None:
    """How near the measured values of the paper's own artifacts are to its, in points; None when it has none."""
    frames = [shown["rows"] for shown in artifacts if shown["has_paper"]]
    if not frames:
        return None
    rows = pd.concat(frames).drop_duplicates(COLUMNS[1:])
    rows = rows[(rows["paper_mean"] != "") & rows["metric"].str.endswith("accuracy")]
    gaps = (rows["mean"].astype(float) - rows["paper_mean"].astype(float)).abs()
    if gaps.empty:
        return None
    return {"count": len(gaps), "median": gaps.median(), "within": (gaps < 3).sum(), "largest": gaps.max()}
