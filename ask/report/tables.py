"""Any table of the run: tidy CSV, its trials as JSON, Markdown, LaTeX and HTML from one description.

Every cell shows the measured value with its 95% interval and, where the paper has one, the paper's value and the
difference in percentage points.
"""

from collections.abc import Sequence
from pathlib import Path

from ask.paths import Run
from ask.report.grid import Number, Numbers
from ask.report.latex import as_latex
from ask.report.markup import as_html
from ask.report.values import (
    COLUMNS,
    EmptyGroupError,
    Json,
    format_difference,
    lookup,
    number,
    tidy,
    write_csv,
    write_numbers,
    write_reference,
    write_text,
)


def render_table(job: Json, run: Run) -> list[Path]:
    """Write ``.csv``, ``.json``, ``.md``, ``.tex`` and ``.html`` of a table.

    A job with ``"comparable": false`` shows the paper's values, but no differences from them.

    Raises:
        MissingValueError: a cell has not been measured.
    """
    numbers: Numbers = {}
    rows, trials = [], []
    for entry in job["entries"]:
        try:
            value = lookup(entry, run)
        except EmptyGroupError:
            continue  # the table shows a blank
        rows.append(tidy(job["id"], entry, value))
        trials.append(number(entry, value))
        numbers[entry["row"], entry["column"]] = Number(
            value=value,
            paper_mean=entry.get("paper_mean"),
            paper_ci95=entry.get("paper_ci95"),
            reference=write_reference(entry),
            comparable=job.get("comparable", True),
        )
    path = run.table(job["id"])
    return [
        write_csv(path, COLUMNS, rows),
        write_numbers(path.with_suffix(".json"), trials),
        write_text(path.with_suffix(".md"), as_markdown(job, numbers)),
        write_text(path.with_suffix(".tex"), as_latex(job, numbers)),
        write_text(path.with_suffix(".html"), as_html(job, numbers)),
    ]


def as_markdown(job: Json, numbers: Numbers) -> str:
    """A GitHub table; several header levels are joined into one."""

    def cell(number: Number | None) -> str:
        if number is None:
            return ""
        text = number.measured
        if number.paper is not None:
            difference = "" if number.difference is None else f" ({format_difference(number.difference)})"
            text += f"<br><sub>paper {number.paper}{difference}</sub>"
        return text

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"

    columns = [", ".join(filter(None, labels)) for labels in job["column_headers"]]
    lines = [
        line([*job["row_names"], *columns]),
        line([*(":--" for _ in job["row_names"]), *("--:" for _ in columns)]),
    ]
    for row, labels in enumerate(job["row_headers"]):
        lines.append(line([*labels, *(cell(numbers.get((row, column))) for column in range(len(columns)))]))
    heading = ". ".join(filter(None, [job["paper"], job["title"]]))
    notes = [f"- {note}" for note in job["notes"]]
    return "\n\n".join(
        filter(None, [f"**{heading}**", job["caption"], "\n".join(lines), "\n".join(notes)]),
    )
