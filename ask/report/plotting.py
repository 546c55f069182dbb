"""What all drawings share: their look, how they are saved, and how they get into a page.

The same job gives the same bytes: no dates, fixed identifiers, fonts that come with matplotlib.
"""

import re
from collections.abc import Callable, Iterable
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ask.files import write
from ask.report.numbers import Json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1b1f24"
"""Text, axes and one line; becomes the page's text colour, so that figures work in dark mode."""

PAGE = "#fffffe"
"""Fill of hollow markers; becomes the page's background."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5629f", INK, "#c08a00", "#3a96d0")
"""Okabe and Ito's colours for colour-blind readers, those too pale for thin lines darkened."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: dict[Any, Any] = {
    **dict.fromkeys((f"axes.{part}color" for part in ("label", "title", "edge")), INK),
    **dict.fromkeys((f"{part}.color" for part in ("text", "xtick", "ytick")), INK),
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "text.parse_math": False,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
}


def save(draw: "Callable[[], Figure]", path: Path, job: Json, references: Iterable[str]) -> list[Path]:
    """Draw, and write ``.svg``, ``.png`` and ``.pdf``; the SVG names the references, so that the report knows them."""
    import matplotlib as mpl  # here: the report reads drawings without it

    title = f"{job['paper']}: {job['title']}" if job["paper"] else job["title"]
    described = {
        ".svg": {"Title": title, "Keywords": list(dict.fromkeys(references)), "Date": None, "Creator": None},
        ".png": {"Title": title, "Software": None},
        ".pdf": {"Title": title, "CreationDate": None, "Creator": None, "Producer": None},
    }
    with mpl.rc_context():
        # A matplotlibrc of the user's own must not change what is drawn.
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE | {"svg.hashsalt": job["id"]})
        put = partial(draw().savefig, dpi=200)
        return [
            write(path.with_suffix(suffix), partial(put, metadata=about, transparent=suffix == ".svg"))
            for suffix, about in described.items()
        ]


def inline_svg(svg: str, *, prefix: str, words: str) -> str:
    """The ``svg`` element alone, readable in light and dark, its identifiers unique to ``prefix``.

    Raises ValueError where the text is no drawing with a view box.
    """
    size = re.search(r'viewBox="0 0 ([\d.]+) [\d.]+"', svg)
    if size is None:
        raise ValueError(f"the drawing of {prefix} has no viewBox; draw it again")
    body = svg[svg.index(">", svg.index("<svg")) + 1 :]
    body = re.sub(r"(?s)<metadata>.*?</metadata>|<style.*?</style>|<title>.*?</title>|<!--.*?-->", "", body)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    body = body.replace("url(#", f"url(#{prefix}-").replace("xlink:href", "href")
    body = body.replace(INK, "currentColor").replace(PAGE, "var(--page)")
    look = f"--natural: {float(size[1]) * 96 / 72:.0f}px"  # points are 1/72, CSS pixels 1/96 of an inch
    text = f'<svg {size[0]} role="img" aria-label="{escape(words)}" style="{look}">{body.strip()}'
    return text.replace("\n", " ")
