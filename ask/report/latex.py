r"""A table in LaTeX: a float to ``\input`` that needs the booktabs package alone."""

from collections.abc import Iterator, Sequence

from ask.report.grid import MANY_COLUMNS, Number, Numbers, spans
from ask.report.values import MINUS, PLUS_MINUS, Json, format_difference

LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{MINUS SIGN}": r"$-$",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{INFINITY}": r"$\infty$",
    "\N{SCRIPT SMALL L}": r"$\ell$",
    "\N{GREEK SMALL LETTER EPSILON}": r"$\varepsilon$",
    "\N{GREEK SMALL LETTER TAU}": r"$\tau$",
    "\N{GREEK SMALL LETTER OMEGA}": r"$\omega$",
    "\N{SUPERSCRIPT PLUS SIGN}": "$^{+}$",
    "\N{SUPERSCRIPT MINUS}": "$^{-}$",
    **{chr(0x2080 + digit): f"$_{digit}$" for digit in range(10)},
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{MIDDLE DOT}": r"\textperiodcentered{}",
}


def escape_latex(text: str) -> str:
    """Text as LaTeX typesets it literally, with the symbols of the paper as mathematics."""
    return "".join(LATEX.get(character, character) for character in text)


def as_latex(job: Json, numbers: Numbers) -> str:
    """The float, with the measured, the paper's and the difference lines of each row."""
    rows, columns = job["row_headers"], job["column_headers"]
    stub, levels = len(job["row_names"]), len(columns[0])
    body = [" " * 4 + line for line in _header(job, stub, levels)]
    groups = {start for _, start, _ in spans(rows, 0)} if stub > 1 else set()
    for row, labels in enumerate(rows):
        if row and row in groups:
            body.append(r"    \midrule")
        new = [any(start == row for _, start, _ in spans(rows, level)) for level in range(stub)]
        shown = [escape_latex(label) if first else "" for label, first in zip(labels, new, strict=True)]
        line = [numbers.get((row, column)) for column in range(len(columns))]
        body += [f"    {text} \\\\" for text in _lines(shown, line)]
    caption = escape_latex(". ".join(text.rstrip(".") for text in (job["title"], job["caption"]) if text) + ".")
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            r"\begin{table}[t]",
            r"  \centering",
            *([r"  \footnotesize\setlength{\tabcolsep}{2.5pt}"] if len(columns) > MANY_COLUMNS else []),
            rf"  \caption{{{caption}}}",
            rf"  \label{{tab:{job['id']}}}",
            rf"  \begin{{tabular}}{{@{{}}{'l' * stub}{'c' * len(columns)}@{{}}}}",
            r"    \toprule",
            *body,
            r"    \bottomrule",
            r"  \end{tabular}",
            *(rf"  \par\smallskip\footnotesize {escape_latex(note)}" for note in job["notes"]),
            r"\end{table}",
        ]
    )


def _header(job: Json, stub: int, levels: int) -> Iterator[str]:
    for level in range(levels):
        last = level == levels - 1
        names = [escape_latex(name) if last else "" for name in job["row_names"]]
        groups = spans(job["column_headers"], level)
        cells = [_spanning(escape_latex(label), length) for label, _, length in groups]
        yield " & ".join([*names, *cells]) + r" \\"
        named = [(stub + start + 1, stub + start + length) for label, start, length in groups if label]
        if named and not last:
            yield " ".join(f"\\cmidrule(lr){{{first}-{final}}}" for first, final in named)
    yield r"\midrule"


def _lines(labels: Sequence[str], numbers: Sequence[Number | None]) -> Iterator[str]:
    """The measured values; then, where the paper has any, its values and the differences, one line each."""
    yield " & ".join([*labels, *(_number(n.measured) if n else "" for n in numbers)])
    indent = [""] * (len(labels) - 1)
    published = [n.paper if n else None for n in numbers]
    differences = [None if n is None or n.difference is None else format_difference(n.difference) for n in numbers]
    for name, texts in (("paper", published), ("difference", differences)):
        if any(texts):
            small = (rf"\scriptsize {_number(text)}" if text else "" for text in texts)
            yield " & ".join([*indent, rf"\quad\scriptsize {name}", *small])


def _spanning(text: str, columns: int) -> str:
    return text if columns == 1 else f"\\multicolumn{{{columns}}}{{c}}{{{text}}}"


def _number(text: str) -> str:
    return "$" + text.replace(PLUS_MINUS, r" \pm ").replace(MINUS, "-") + "$"
