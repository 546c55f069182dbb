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
from ask.report.captions import notice, settings_of
from ask.report.evidence import anchor, describe, duration, in_text, stages, summarise, warn
from ask.report.numbers import COLUMNS, VERDICTS, Json, MissingValueError, format_value, load_cell, read_csv
from ask.report.plotting import inline_svg

TEMPLATES = Path(__file__).parent / "templates"
ASSETS = ("style.css", "script.js")

SUFFIXES = ("csv", "json", "md", "tex", "html", "svg", "png", "pdf")
"""What tables and figures can be downloaded as."""

NUMBER = re.compile(
    r'(<td class="value[^>]* data-cell="([^"]*)">)(<span class="measured">.*?</span>)(?= <span class="paper">|</td>)'
)
"""A number of a rendered table: what opens it, its reference, itself."""


def render_report(job: Json, run: Run) -> list[Path]:
    """Write the index, a page for each artifact, and what they share; pages of artifacts that are gone go.

    Raises MissingValueError where a table, a figure or a cell behind it is not on disk.
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
    warnings: dict[str, list[Json]] = {}
    for shown in artifacts:
        for warning in shown["warnings"]:
            warnings.setdefault(warning, []).append(shown)
    common = {
        "run": job["run"],
        "title": job["title"],
        "stand_ins": in_text(configuration.pop("stand_ins", None)),
        "names": {shown["id"]: shown["paper"] or shown["title"] for shown in artifacts},
    }
    index = environment.get_template("index.html.j2").render(
        **common,
        note=job.get("note"),
        claims=read_csv(run.claims).to_dict("records") if run.claims.is_file() else [],
        verdicts=VERDICTS,
        summary=summarise(configuration, cells.values()),
        stages=stages(run),
        glance=None if common["stand_ins"] else compare(shown["rows"] for shown in artifacts if shown["paper"]),
        numbers=sum(len(shown["rows"]) for shown in artifacts if shown["kind"] != "pictures"),
        categories=categories,
        warnings=warnings,
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
    kind, name = artifact["kind"], artifact["id"]
    path = run.table(name) if kind == "table" else run.figure(name)
    drawn = path.with_suffix(".html" if kind == "table" else ".svg")
    for needed in (path, drawn):
        if not needed.is_file():
            raise MissingValueError(
                f"{kind} {name} has not been rendered: {needed} is missing; make it: snakemake --cores all {needed}"
            )
    rows, text = read_csv(path), drawn.read_text(encoding="utf-8")
    named = references(text)
    behind = {each: load_cell(each, run) for each in dict.fromkeys(name.partition("#")[0] for name in named)}
    cells.update(behind)
    files = [path.with_suffix(f".{suffix}") for suffix in SUFFIXES]
    return {
        **{key: artifact.get(key) for key in ("id", "kind", "title", "caption", "paper", "category")},
        "notes": artifact.get("notes") or [],
        "body": Markup(linked(text) if kind == "table" else inline_svg(text, prefix=name, words=in_words(kind, rows))),
        "rows": rows,
        "drawn": value_list(rows) if kind == "figure" else [],
        "settings": settings_of(rows, behind.values(), artifact.get("labels", {})),
        "has_paper": "paper_mean" in rows and (rows["paper_mean"] != "").any(),
        "notice": notice(artifact, rows),
        "cells": [describe(each, cell, run, configfile) for each, cell in behind.items()],
        "warnings": warn(named, behind),
        "downloads": [(file.suffix[1:], f"../{file.parent.name}/{file.name}") for file in files if file.is_file()],
    }


def references(text: str) -> list[str]:
    """Cells behind a table or drawing, which its numbers or keywords name."""
    found = re.findall(r'data-(?:beside|cell)="([^"]*)"|<rdf:li>([^<]*#[^<]*)</rdf:li>', text)
    return list(dict.fromkeys(unescape(one) for number, keyword in found for one in number.split() or [keyword]))


def linked(text: str) -> str:
    """A rendered table, each number a link to the cell that measured it."""

    def link(found: re.Match[str]) -> str:
        cell = unescape(found[2]).partition("#")[0]
        return f'{found[1]}<a href="#{anchor(cell)}" title="measured by {escape(cell)}">{found[3]}</a>'

    return NUMBER.sub(link, text)


def in_words(kind: str, rows: pd.DataFrame) -> str:
    """What a drawing shows, for those who cannot see it.

    Of a line plot, where each line begins and ends; of pictures, each attack's classes; below decision boundaries, the
    accuracies of each model's classifiers.
    """
    if kind == "boundaries":
        columns = (rows[name] for name in ("model", "classifier", "images", "mean"))
        accuracies = [f"{', '.join(who)}: {float(mean):.0f}%." for *who, mean in zip(*columns, strict=True)]
        return " ".join(["Decision boundaries of a network and a kNN in the plane.", *accuracies])
    if kind == "pictures":
        sentences = [f"An image of class {rows['class'][0]} and its nearest references."]
        for place, found in rows.groupby(["row", "column"], sort=False):
            predicted, classes = found["predicted"].iloc[0], ", ".join(found["neighbour_class"])
            sentences.append(f"{', '.join(map(str, place))}: classified as {predicted}; neighbours of class {classes}.")
        return " ".join(sentences)
    sentences = ["Line plot."]
    unit = "%" if rows["metric"].str.removesuffix("_gain").str.endswith("accuracy").all() else ""
    for place, points in rows.astype({"x": float, "mean": float}).groupby(["panel", "line"], sort=False):
        ends = points.sort_values(["x", "mean"]).iloc[[0, -1]]
        first, last = (f"{mean:.1f}{unit} at {x:g}" for x, mean in zip(ends["x"], ends["mean"], strict=True))
        sentences.append(f"{', '.join(str(part) for part in place if part != '')}: from {first} to {last}.")
    return " ".join(sentences)


def value_list(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    """The drawn numbers as rows of text, with ``measured`` as in a table."""
    pairs = zip(rows["mean"], rows["ci95"], strict=True)
    measured = [format_value(float(mean), float(ci95) if ci95 else None) for mean, ci95 in pairs]
    return rows.assign(measured=measured).to_dict("records")


def compare(frames: Iterable[pd.DataFrame]) -> dict[str, float] | None:
    """How near the measured values of the paper's own artifacts are to its, in points; None when it has none."""
    rows = pd.concat([pd.DataFrame(columns=COLUMNS, dtype=str), *frames])[list(COLUMNS)].fillna("")
    rows = rows[(rows["paper_mean"] != "") & rows["metric"].str.endswith("accuracy")].drop_duplicates(COLUMNS[1:])
    gaps = (rows["mean"].astype(float) - rows["paper_mean"].astype(float)).abs()
    if gaps.empty:
        return None
    return {"count": len(gaps), "median": gaps.median(), "within": (gaps < 3).sum(), "largest": gaps.max()}
