"""Putting a drawn figure into a page: SVG that takes the page's colours, and its content in words."""

import re
from collections.abc import Mapping, Sequence
from html import escape, unescape

from ask.report.colours import INK, PAGE
from ask.report.values import format_value

CSS_PIXELS_A_POINT = 96 / 72


def inline_svg(svg: str, *, prefix: str, words: str) -> str:
    """The ``svg`` element alone, readable in light and dark, its identifiers unique to ``prefix``.

    Raises:
        ValueError: the text is no drawing with a view box.
    """
    size = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', svg)
    if size is None:
        raise ValueError(f"the drawing of {prefix} has no viewBox; draw it again")
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<title>.*?</title>|<!--.*?-->", "", body, flags=re.DOTALL
    )
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace("xlink:href", "href")
    body = body.replace(INK, "currentColor").replace(PAGE, "var(--page)")
    width = float(size[1]) * CSS_PIXELS_A_POINT
    return (
        f'<svg {size[0]} role="img" aria-label="{escape(words)}" style="--natural: {width:.0f}px">{body.strip()}'
    ).replace("\n", " ")


def svg_references(svg: str) -> list[str]:
    """Cells behind a drawing, which its keywords name."""
    return [unescape(item) for item in re.findall(r"<rdf:li>([^<]*#[^<]*)</rdf:li>", svg)]


def in_words(rows: Sequence[Mapping[str, str]]) -> str:
    """What a line plot shows, for those who cannot see it: each line's ends, and its extremes in between."""
    sentences = []
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    unit = "%" if all(row["metric"].partition("_gain")[0].endswith("accuracy") for row in rows) else ""
    for row in rows:
        lines.setdefault((row["panel"], row["line"]), []).append((float(row["x"]), float(row["mean"])))
    for (panel, line), points in lines.items():
        points.sort()
        (x0, y0), (x1, y1) = points[0], points[-1]
        place = f"{panel}, {line}" if panel else line
        sentences.append(f"{place}: from {y0:.1f}{unit} at {x0:g} to {y1:.1f}{unit} at {x1:g}.")
    return " ".join(["Line plot.", *sentences])


def pictures_in_words(rows: Sequence[Mapping[str, str]]) -> str:
    """What the pictures show: for each attack, the DkNN's class and the neighbours' classes."""
    lines: dict[tuple[str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        lines.setdefault((row["row"], row["column"]), []).append(row)
    sentences = [f"An image of class {rows[0]['class']} and its nearest references."]
    for (line, column), found in lines.items():
        classes = ", ".join(neighbour["neighbour_class"] for neighbour in found)
        sentences.append(f"{line}, {column}: classified as {found[0]['predicted']}; neighbours of class {classes}.")
    return " ".join(sentences)


def accuracies_in_words(rows: Sequence[Mapping[str, str]]) -> str:
    """What stands below decision boundaries: the accuracies of each model's classifiers."""
    found = [f"{row['model']}, {row['classifier']}, {row['images']}: {float(row['mean']):.0f}%." for row in rows]
    return " ".join(["Decision boundaries of a network and a kNN in the plane.", *found])


def value_table(rows: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The drawn numbers as rows of text: panel, line, x, measured, paper."""
    return [
        {
            "panel": row["panel"],
            "line": row["line"],
            "x": row["x"],
            "measured": format_value(float(row["mean"]), float(row["ci95"]) if row["ci95"] else None),
            "paper": row["paper_mean"],
        }
        for row in rows
    ]
