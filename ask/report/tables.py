"""Any table of the run: tidy CSV, its trials as JSON, Markdown, LaTeX and HTML, all from one frame of numbers.

Every cell shows the measured value with its 95% interval and, where the paper has one, the paper's value and the
difference in percentage points.
"""

from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from ask.files import write_text
from ask.paths import Run
from ask.report.numbers import (
    COLUMNS,
    MINUS,
    PLUS_MINUS,
    EmptyGroupError,
    Json,
    MissingValueError,
    collect,
    entries,
    format_difference,
    format_published,
    format_value,
    write_csv,
    write_numbers,
)

SHADES = (1.0, 3.0, 10.0)
"""Differences (points) from which a cell is shaded lightly, clearly and strongly."""

MANY_COLUMNS = 4
"""A table of more columns is set tighter, to fit a page."""

_TEXT = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "·": "periodcentered"}
_MATHEMATICS = {"±": "pm", "×": "times", "≤": "leq", "≥": "geq", "∞": "infty", "ℓ": "ell", "ε": "varepsilon"}
_MATHEMATICS |= {"τ": "tau", "ω": "omega"}
LATEX = {MINUS: "$-$", "⁺": "$^{+}$", "⁻": "$^{-}$", "–": "--", "—": "---", "…": r"\ldots{}", "\N{NO-BREAK SPACE}": "~"}
LATEX |= {character: rf"\{character}" for character in "&%$#_{}"}
LATEX |= {character: rf"\text{name}{{}}" for character, name in _TEXT.items()}
LATEX |= {character: rf"$\{name}$" for character, name in _MATHEMATICS.items()}
LATEX |= {chr(ord("₀") + digit): f"$_{digit}$" for digit in range(10)}
"""What LaTeX needs instead of a character, the symbols of the paper as mathematics."""


def render_table(job: Json, run: Run) -> list[Path]:
    """Write ``.csv``, ``.json``, ``.md``, ``.tex`` and ``.html`` of a table.

    A job with ``"comparable": false`` shows the paper's values, but no differences from them.

    Raises:
        MissingValueError: a cell has not been measured.
    """
    numbers = collect(job, run, skip=EmptyGroupError)  # the table shows a blank
    path = run.table(job["id"])
    texts = {".md": as_markdown(job, numbers), ".tex": as_latex(job, numbers), ".html": as_html(job, numbers)}
    return [
        write_csv(path, COLUMNS, numbers),
        write_numbers(path.with_suffix(".json"), numbers),
        *(write_text(path.with_suffix(suffix), f"{text}\n") for suffix, text in texts.items()),
    ]


def partial_table(job: Json, run: Run) -> str:
    """What can be read already: a table in Markdown with blanks, and of any artifact how many numbers there are."""
    numbers = collect(job, run, skip=MissingValueError)
    wanted = len(list(entries(job)))
    count = f"{len(numbers)} of {wanted} numbers measured\n"
    if job["kind"] != "table":
        return f"{job['title']}: " + (count if wanted else "no table\n")
    return f"{as_markdown(job, numbers)}\n\n{count}"


def spans(headers: Sequence[Sequence[str]], level: int) -> list[tuple[str, int, int]]:
    """Runs of neighbours that share a label at this level and every level above: (label, start, length)."""
    merged: list[tuple[str, int, int]] = []
    for position, labels in enumerate(headers):
        if position and list(labels[: level + 1]) == list(headers[position - 1][: level + 1]):
            label, start, length = merged[-1]
            merged[-1] = (label, start, length + 1)
        else:
            merged.append((labels[level], position, 1))
    return merged


def in_text(job: Json, numbers: pd.DataFrame) -> pd.DataFrame:
    """Numbers as they are shown: ``measured``, ``paper`` and ``difference``, the last two empty where there are none.

    Their ``shade`` is the class of the difference: ``above-2``, ``below-1``; empty when small.
    """
    paper, comparable = numbers["paper_mean"], job.get("comparable", True)
    pairs = zip(numbers["mean"], paper, strict=True)
    points = [mean - published if comparable and published is not None else None for mean, published in pairs]
    return numbers.assign(
        measured=list(map(format_value, numbers["mean"], numbers["ci95"])),
        paper=list(map(format_published, paper, numbers["paper_ci95"])),
        difference=list(map(format_difference, points)),
        shade=[_shade(value or 0.0) for value in points],
    )


def _shade(points: float) -> str:
    level = sum(abs(points) >= threshold for threshold in SHADES)
    return f"{'above' if points > 0 else 'below'}-{level}" if level else ""


def grid(job: Json, numbers: pd.DataFrame, texts: Iterable[str], blank: str = "") -> list[list[str]]:
    """A text for each number, by row and column of the table."""
    placed = numbers.assign(text=list(texts)).pivot(index="row", columns="column", values="text")
    whole = placed.reindex(index=range(len(job["row_headers"])), columns=range(len(job["column_headers"])))
    filled: list[list[str]] = whole.astype(object).fillna(blank).to_numpy().tolist()
    return filled


def as_markdown(job: Json, numbers: pd.DataFrame) -> str:
    """A GitHub table; several header levels are joined into one."""

    def cell(number: Any) -> str:
        difference = f" ({number.difference})" if number.difference else ""
        return number.measured + (f"<br><sub>paper {number.paper}{difference}</sub>" if number.paper else "")

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    columns = [", ".join(filter(None, labels)) for labels in job["column_headers"]]
    cells = grid(job, numbers, map(cell, in_text(job, numbers).itertuples()))
    lines = [
        line([*job["row_names"], *columns]),
        line([*(":--" for _ in job["row_names"]), *("--:" for _ in columns)]),
        *(line([*labels, *row]) for labels, row in zip(job["row_headers"], cells, strict=True)),
    ]
    heading = ". ".join(filter(None, [job["paper"], job["title"]]))
    notes = [f"- {note}" for note in job["notes"]]
    return "\n\n".join(filter(None, [f"**{heading}**", job["caption"], "\n".join(lines), "\n".join(notes)]))


def escape_latex(text: str) -> str:
    """Text as LaTeX typesets it literally."""
    return "".join(LATEX.get(character, character) for character in text)


def as_latex(job: Json, numbers: pd.DataFrame) -> str:
    r"""A float to ``\input`` that needs the booktabs package alone.

    The measured values of each row and, below them, the paper's and the differences.
    """
    rows, stub, width = job["row_headers"], len(job["row_names"]), len(job["column_headers"])
    shown = in_text(job, numbers)
    grids = [grid(job, shown, map(_mathematics, shown[name])) for name in ("measured", "paper", "difference")]
    stubs = [[""] * stub for _ in rows]
    for level in range(stub):
        for label, start, _ in spans(rows, level):
            stubs[start][level] = escape_latex(label)
    groups = {start for _, start, _ in spans(rows, 0)[1:]} if stub > 1 else set()
    lines = [r"\toprule", *_latex_header(job, stub)]
    for row, (labels, measured, *others) in enumerate(zip(stubs, *grids, strict=True)):
        lines += [r"\midrule"] * (row in groups) + [_latex_line([*labels, *measured])]
        for name, texts in zip(("paper", "difference"), others, strict=True):
            if any(texts):
                small = [text and rf"\scriptsize {text}" for text in texts]
                lines.append(_latex_line([*[""] * (stub - 1), rf"\quad\scriptsize {name}", *small]))
    caption = escape_latex(". ".join(text.rstrip(".") for text in (job["title"], job["caption"]) if text) + ".")
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"  \centering",
            *[r"  \footnotesize\setlength{\tabcolsep}{2.5pt}"] * (width > MANY_COLUMNS),
            rf"  \caption{{{caption}}}",
            rf"  \label{{tab:{job['id']}}}",
            rf"  \begin{{tabular}}{{@{{}}{'l' * stub}{'c' * width}@{{}}}}",
            *(f"    {line}" for line in [*lines, r"\bottomrule"]),
            r"  \end{tabular}",
            *(rf"  \par\smallskip\footnotesize {escape_latex(note)}" for note in job["notes"]),
            r"\end{table}",
        ]
    )


def _latex_header(job: Json, stub: int) -> Iterator[str]:
    last = len(job["column_headers"][0]) - 1
    for level in range(last + 1):
        names = [escape_latex(name) if level == last else "" for name in job["row_names"]]
        groups = [(escape_latex(label), start, length) for label, start, length in spans(job["column_headers"], level)]
        merged = [f"\\multicolumn{{{n}}}{{c}}{{{label}}}" if n > 1 else label for label, _, n in groups]
        yield _latex_line([*names, *merged])
        rules = [f"\\cmidrule(lr){{{stub + start + 1}-{stub + start + n}}}" for label, start, n in groups if label]
        if rules and level < last:
            yield " ".join(rules)
    yield r"\midrule"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _mathematics(text: str) -> str:
    return text and "$" + text.replace(PLUS_MINUS, r" \pm ").replace(MINUS, "-") + "$"


def as_html(job: Json, numbers: pd.DataFrame) -> str:
    """A table element with merged headers, scopes and caption; classes and ``data-cell`` serve the report."""
    rows, columns, stub = job["row_headers"], job["column_headers"], len(job["row_names"])
    levels = [spans(columns, level) for level in range(len(columns[0]))]
    tall = f' rowspan="{len(levels)}"' if len(levels) > 1 else ""
    # A header cell without text would be announced as one.
    head = [
        [_header("col", n, label) if label else f'<td colspan="{n}"></td>' for label, _, n in level] for level in levels
    ]
    head[0][:0] = [
        f'<th scope="col"{tall} class="stub">{escape(name)}</th>' if name else f"<td{tall}></td>"
        for name in job["row_names"]
    ]
    body = grid(job, numbers, map(_html_cell, in_text(job, numbers).itertuples()), '<td class="empty"></td>')
    for level in reversed(range(stub)):
        for label, start, length in spans(rows, level):
            body[start].insert(0, _header("row", length, label))
    wide = " wide" if len(columns) > MANY_COLUMNS else ""
    lines = [
        f'<table class="ask-table stub-{stub} levels-{len(levels)}{wide}" id="table-{escape(job["id"])}">',
        f"<caption><strong>{escape(job['title'])}</strong> {escape(job['caption'])}</caption>",
        f'<colgroup span="{stub}"></colgroup>',
        *(f'<colgroup span="{length}"></colgroup>' for _, _, length in levels[0]),
        *("<thead>", *map(_html_row, head), "</thead>"),
    ]
    for _, start, length in spans(rows, 0) if stub > 1 else [("", 0, len(rows))]:
        lines += ["<tbody>", *map(_html_row, body[start : start + length]), "</tbody>"]
    return "\n".join([*lines, "</table>"])


def _header(side: str, length: int, label: str) -> str:
    scope = f'scope="{side}group" {side}span="{length}"' if length > 1 else f'scope="{side}"'
    return f"<th {scope}>{escape(label)}</th>"


def _html_row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _html_cell(number: Any) -> str:
    mean, sign, half_width = number.measured.partition(PLUS_MINUS)
    interval = f'<span class="interval">{sign}{half_width}</span>' if sign else ""
    difference = f' <span class="difference">{number.difference}</span>' if number.difference else ""
    paper = f' <span class="paper">paper {number.paper}{difference}</span>' if number.paper else ""
    return (
        f'<td class="{f"value {number.shade}".rstrip()}" data-cell="{escape(number.reference)}">'
        f'<span class="measured">{mean}{interval}</span>{paper}</td>'
    )
