"""A table in HTML: one element with merged headers, to be read by eye or by screen reader."""

from collections.abc import Iterator
from html import escape

from ask.report.grid import MANY_COLUMNS, Number, Numbers, spans
from ask.report.values import PLUS_MINUS, Json, format_difference, format_parts


def as_html(job: Json, numbers: Numbers) -> str:
    """A table element with merged headers, scopes and caption; classes and ``data-cell`` serve the report."""
    rows, columns = job["row_headers"], job["column_headers"]
    stub = len(job["row_names"])
    wide = " wide" if len(columns) > MANY_COLUMNS else ""
    lines = [
        f'<table class="ask-table stub-{stub} levels-{len(columns[0])}{wide}" id="table-{escape(job["id"])}">',
        f"<caption><strong>{escape(job['title'])}</strong> {escape(job['caption'])}</caption>",
        f'<colgroup span="{stub}"></colgroup>',
        *(f'<colgroup span="{length}"></colgroup>' for _, _, length in spans(columns, 0)),
        "<thead>",
        *_header(job, len(columns[0])),
        "</thead>",
    ]
    starts = {level: {start: length for _, start, length in spans(rows, level)} for level in range(stub)}
    breaks = set(starts[0]) if stub > 1 else {0}
    for row, labels in enumerate(rows):
        if row in breaks:
            lines += ["</tbody>"] * bool(row) + ["<tbody>"]
        cells = []
        for level, label in enumerate(labels):
            if row in starts[level]:
                length = starts[level][row]
                scope = f'scope="rowgroup" rowspan="{length}"' if length > 1 else 'scope="row"'
                cells.append(f"<th {scope}>{escape(label)}</th>")
        cells += [_cell(numbers.get((row, column))) for column in range(len(columns))]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*lines, "</tbody>", "</table>"])


def _header(job: Json, levels: int) -> Iterator[str]:
    for level in range(levels):
        cells = []
        if level == 0:
            for name in job["row_names"]:
                tall = f' rowspan="{levels}"' if levels > 1 else ""
                cells.append(f'<th scope="col"{tall} class="stub">{escape(name)}</th>' if name else f"<td{tall}></td>")
        for label, _, length in spans(job["column_headers"], level):
            scope = f'scope="colgroup" colspan="{length}"' if length > 1 else 'scope="col"'
            # A header cell without text would be announced as one.
            cells.append(f"<th {scope}>{escape(label)}</th>" if label else f'<td colspan="{length}"></td>')
        yield "<tr>" + "".join(cells) + "</tr>"


def _cell(number: Number | None) -> str:
    if number is None:
        return '<td class="empty"></td>'
    mean, half_width = format_parts(number.value.mean, number.value.ci95)
    interval = "" if half_width is None else f'<span class="interval">{PLUS_MINUS}{half_width}</span>'
    paper = ""
    if number.paper is not None:
        difference = ""
        if number.difference is not None:
            difference = f' <span class="difference">{format_difference(number.difference)}</span>'
        paper = f' <span class="paper">paper {number.paper}{difference}</span>'
    classes = " ".join(filter(None, ["value", number.shade]))
    return (
        f'<td class="{classes}" data-cell="{escape(number.reference)}">'
        f'<span class="measured">{mean}{interval}</span>{paper}</td>'
    )
