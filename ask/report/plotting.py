"""How everything that matplotlib draws looks, and how it is saved: the same job gives the same bytes.

No dates, fixed identifiers, fonts that come with matplotlib.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ask.report.colours import INK
from ask.report.values import Json

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5629f", INK, "#c08a00", "#3a96d0")
"""Okabe and Ito's colours for colour-blind readers, those too pale for thin lines darkened."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.facecolor": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
}


def save(figure: Figure, path: Path, job: Json, references: Sequence[str]) -> list[Path]:
    """Write ``.svg``, ``.png`` and ``.pdf``; the references tell the report, and any reader, which cells were drawn."""
    title = f"{job['paper']}: {job['title']}" if job["paper"] else job["title"]
    described: dict[str, Any] = {"Title": title, "Keywords": list(references)}
    written = []
    for suffix, metadata in (
        (".svg", described | {"Date": None, "Creator": None}),
        (".png", {"Title": title, "Software": None}),
        (".pdf", {"Title": title, "CreationDate": None, "Creator": None, "Producer": None}),
    ):
        target = path.with_suffix(suffix)
        figure.savefig(target, dpi=200, metadata=metadata, transparent=suffix == ".svg")
        written.append(target)
    return written
