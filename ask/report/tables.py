"""Any table of the run: tidy CSV, its trials as JSON, Markdown, LaTeX and HTML, all from one frame of numbers.

Every cell shows the measured value with its 95% interval and, where the paper has one, the paper's value and the
difference in percentage points.
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from ask.files import write_text
from ask.paths import Run
from ask.report.captions import noted, notice, sentence, settings_of
from ask.report.numbers import (
    PLUS_MINUS,
    EmptyGroupError,
    Json,
    MissingValueError,
    collect,
    entries,
    estimate,
    format_difference,
    join_predictions,
    load_cell,
    read_predictions,
    read_reference,
    write_numbers,
)
from ask.statistics import Estimate, pool_trials

KINDS = ("measured", "paper", "difference")
"""What a cell shows."""

MANY_COLUMNS = 4
"""A table of more columns is set tighter, to fit a page."""

_TEXT = {"\\": "backslash", "~": "asciitilde", "^": "asciicircum", "<": "less", ">": "greater", "·": "periodcentered"}
_SYMBOLS = {"±": "pm", "×": "times", "≤": "leq", "≥": "geq", "∞": "infty", "ℓ": "ell", "ε": "varepsilon", "τ": "tau"}
_SIGNS = {"−": "$-$", "⁺": "$^{+}$", "⁻": "$^{-}$", "–": "--", "—": "---", "…": r"\ldots{}", "\N{NO-BREAK SPACE}": "~"}
LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {character: rf"\text{name}{{}}" for character, name in _TEXT.items()}
    | {character: rf"$\{name}$" for character, name in [*_SYMBOLS.items(), ("ω", "omega")]}
    | {chr(ord("₀") + digit): f"$_{digit}$" for digit in range(10)}
    | _SIGNS
)
"""What LaTeX typesets as a character, for `str.translate`; the symbols of the paper are mathematics."""
_NUMBER = str.maketrans({"±": r" \pm ", "−": "-"})


def render_table(job: Json, run: Run) -> list[Path]:
    """Write ``.csv``, ``.json``, ``.md``, ``.tex`` and ``.html`` of a table.

    A job with ``"comparable": false`` shows the paper's values, but no differences from them. Raises MissingValueError.
    """
    numbers = collect(job, run, skip=EmptyGroupError)  # the table shows a blank
    remark = margin_remark(job, numbers, run)
    if remark:
        job = {**job, "notes": [*job["notes"], remark]}
    path, job = run.table(job["id"]), described(job, numbers, run)
    texts = {".md": as_markdown(job, numbers), ".tex": as_latex(job, numbers), ".html": as_html(job, numbers)}
    if remark:  # the report page has the other notes from elsewhere
        texts[".html"] += f'\n<p class="remark">{escape(remark)}</p>'
    return [
        *write_numbers(path, *noted(job, numbers)),
        *(write_text(path.with_suffix(suffix), f"{text}\n") for suffix, text in texts.items()),
    ]


def margin_remark(job: Json, numbers: pd.DataFrame, run: Run) -> str:
    """What remains of an attack's margin against the best of its rivals, in words, if the job asks for that.

    Each row and each group of columns is a setting, in which the rivals are the other innermost columns. Intervals are
    of paired differences, over trials and, where predictions are kept, images; what trials vary is pooled over all of
    them (docs/statistics.md).
    """
    if not job.get("margin"):
        return ""
    of, papers = job["margin"]["of"], job["margin"]["rivals"]
    settings: dict[str, dict[str, tuple[Any, Any]]] = {}
    for row in numbers.to_dict("records"):
        *outer, innermost = job["column_headers"][row["column"]]
        setting = ", ".join(filter(None, [*outer, *job["row_headers"][row["row"]]]))
        values = join_predictions([read_predictions(row["reference"], row["metric"], run)], row["values"])
        settings.setdefault(setting, {})[innermost] = row, values
    every = {
        (setting, label): estimate([(1.0, *rival), (-1.0, *found[of])])[0]
        for setting, found in settings.items()
        for label, rival in found.items()
        if of in found and label != of
    }
    margins, parts, best = dict(zip(every, pool_trials(list(every.values())), strict=True)), [], dict[str, str]()
    for who, rivals in (("the paper's rivals", papers), ("all shown", {label for _, label in margins})):
        own = sorted((one for one in margins if one[1] in rivals), key=lambda one: (-margins[one].mean, one[1]))
        best = {setting: dict(own)[setting] for setting in settings if setting in dict(own)}  # of equal ones the last
        if best:
            least = min(best.items(), key=lambda one: margins[one].mean)
            parts.append(f"{_less_or_more(margins[least])} the best of {who} (smallest margin: {', '.join(least)})")
    each = [f"{one[0]} {format_difference(margins[one].mean)}{_half(margins[one])} ({one[1]})" for one in best.items()]
    if not parts:
        return ""
    told = f"{of} leaves {' and '.join(parts)}. Margins against the best of all: {'; '.join(each)}."
    return f"{told} Intervals pool over these margins what trials vary."


def _half(margin: Estimate) -> str:
    return f"{PLUS_MINUS}{margin.half_width:.1f}" if margin.half_width >= 0.05 else ""


def _less_or_more(margin: Estimate) -> str:
    points = f"{abs(margin.mean):.1f}{_half(margin)}"
    if points.startswith("0.0"):
        return "in some setting as much as"
    return f"at least {points} points less than" if margin.mean > 0 else f"up to {points} points more than"


def partial_table(job: Json, run: Run) -> str:
    """What can be read already: a table in Markdown with blanks, and of any artifact how many numbers there are."""
    numbers = collect(job, run, skip=MissingValueError)
    wanted = len(list(entries(job)))
    count = f"{len(numbers)} of {wanted} numbers measured\n"
    if job["kind"] != "table":
        return f"{job['title']}: " + (count if wanted else "no table\n")
    return f"{as_markdown(described(job, numbers, run), numbers)}\n\n{count}"


def described(job: Json, numbers: pd.DataFrame, run: Run) -> dict[str, Any]:
    """A table's job, its caption followed by the settings that the numbers were measured with."""
    cells = dict.fromkeys(read_reference(reference)[0] for reference in numbers["reference"])
    told = settings_of(numbers, [load_cell(name, run) for name in cells], job.get("labels", {}))
    return {**job, "caption": " ".join(filter(None, [job["caption"], sentence(told), notice(job, numbers)]))}


def spans(headers: Sequence[Sequence[str]], level: int) -> list[tuple[str, int, int]]:
    """Runs of neighbours that share a label at this level and every level above: (label, start, length)."""
    runs = groupby(range(len(headers)), key=lambda place: list(headers[place][: level + 1]))
    places = [list(run) for _, run in runs]
    return [(headers[run[0]][level], run[0], len(run)) for run in places]


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
        return str(number.measured) + (f"<br><sub>paper {number.paper}{difference}</sub>" if number.paper else "")

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    columns = [", ".join(filter(None, labels)) for labels in job["column_headers"]]
    cells = grid(job, numbers, map(cell, numbers.itertuples()))
    lines = [
        line([*job["row_names"], *columns]),
        line([*(":--" for _ in job["row_names"]), *("--:" for _ in columns)]),
        *(line([*labels, *row]) for labels, row in zip(job["row_headers"], cells, strict=True)),
    ]
    heading = ". ".join(filter(None, [job["paper"], job["title"]]))
    notes = [f"- {note}" for note in job["notes"]]
    return "\n\n".join(filter(None, [f"**{heading}**", job["caption"], "\n".join(lines), "\n".join(notes)]))


def as_latex(job: Json, numbers: pd.DataFrame) -> str:
    r"""A float to ``\input`` that needs the booktabs package alone.

    The measured values of each row and, below them, the paper's and the differences.
    """
    rows, columns, stub = job["row_headers"], job["column_headers"], len(job["row_names"])
    lines: list[list[str] | str] = [r"\toprule"]
    for level in range(len(columns[0])):
        last = level == len(columns[0]) - 1
        groups = [(label.translate(LATEX), start, length) for label, start, length in spans(columns, level)]
        merged = [rf"\multicolumn{{{n}}}{{c}}{{{label}}}" if n > 1 else label for label, _, n in groups]
        lines.append([*(name.translate(LATEX) if last else "" for name in job["row_names"]), *merged])
        rules = [rf"\cmidrule(lr){{{stub + start + 1}-{stub + start + n}}}" for label, start, n in groups if label]
        if rules and not last:
            lines.append(" ".join(rules))
    stubs = [[""] * stub for _ in rows]
    for level in range(stub):
        for label, start, _ in spans(rows, level):
            stubs[start][level] = label.translate(LATEX)
    breaks = {start for _, start, _ in spans(rows, 0)} if stub > 1 else {0}
    shown = [[text and f"${text.translate(_NUMBER)}$" for text in numbers[name]] for name in KINDS]
    for row, (labels, measured, *others) in enumerate(zip(stubs, *(grid(job, numbers, t) for t in shown), strict=True)):
        lines += [r"\midrule", [*labels, *measured]] if row in breaks else [[*labels, *measured]]
        for name, texts in zip(KINDS[1:], others, strict=True):
            if any(texts):
                small = [text and rf"\scriptsize {text}" for text in texts]
                lines.append([*[""] * (stub - 1), rf"\quad\scriptsize {name}", *small])
    caption = ". ".join(text.rstrip(".") for text in (job["title"], job["caption"]) if text) + "."
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"  \centering",
            *[r"  \footnotesize\setlength{\tabcolsep}{2.5pt}"] * (len(columns) > MANY_COLUMNS),
            rf"  \caption{{{caption.translate(LATEX)}}}",
            rf"  \label{{tab:{job['id']}}}",
            rf"  \begin{{tabular}}{{@{{}}{'l' * stub}{'c' * len(columns)}@{{}}}}",
            *("    " + (line if isinstance(line, str) else " & ".join(line) + r" \\") for line in lines),
            r"    \bottomrule",
            r"  \end{tabular}",
            *(rf"  \par\smallskip\footnotesize {note.translate(LATEX)}" for note in job["notes"]),
            r"\end{table}",
        ]
    )


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
    body = grid(job, numbers, map(_html_cell, numbers.itertuples()), '<td class="empty"></td>')
    for level in reversed(range(stub)):
        for label, start, length in spans(rows, level):
            body[start].insert(0, _header("row", length, label))
    wide = " wide" if len(columns) > MANY_COLUMNS else ""
    lines = [
        f'<table class="ask-table stub-{stub} levels-{len(levels)}{wide}" id="table-{escape(job["id"])}">',
        f"<caption><strong>{escape(job['title'])}</strong> {escape(job['caption'])}</caption>",
        f'<colgroup span="{stub}"></colgroup>',
        *(f'<colgroup span="{length}"></colgroup>' for _, _, length in levels[0]),
        *("<thead>", *(f"<tr>{''.join(cells)}</tr>" for cells in head), "</thead>"),
    ]
    for _, start, length in spans(rows, 0) if stub > 1 else [("", 0, len(rows))]:
        lines += ["<tbody>", *(f"<tr>{''.join(cells)}</tr>" for cells in body[start : start + length]), "</tbody>"]
    return "\n".join([*lines, "</table>"])


def _header(side: str, length: int, label: str) -> str:
    scope = f'scope="{side}group" {side}span="{length}"' if length > 1 else f'scope="{side}"'
    return f"<th {scope}>{escape(label)}</th>"


def _html_cell(number: Any) -> str:
    mean, sign, half_width = number.measured.partition("±")
    interval = f'<span class="interval">{sign}{half_width}</span>' if sign else ""
    difference = f' <span class="difference">{number.difference}</span>' if number.difference else ""
    paper = f' <span class="paper">paper {number.paper}{difference}</span>' if number.paper else ""
    beside = f' data-beside="{escape(" ".join(number.beside))}"' if number.beside else ""
    return (
        f'<td class="{f"value {number.shade}".rstrip()}"{beside} data-cell="{escape(number.reference)}">'
        f'<span class="measured">{mean}{interval}</span>{paper}</td>'
    )
