"""LaTeX that people paste: every table of the paper run compiles with booktabs alone."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ask.config.run import load_artifacts, read_run
from ask.paths import Run
from ask.plan.paper import Paper
from ask.plan.planner import plan_run
from ask.report import numbers
from ask.report.tables import as_latex

ROOT = Path(__file__).parent.parent
DOCUMENT = r"\documentclass[10pt]{article}\usepackage{booktabs}\begin{document}%s\end{document}"

pytestmark = pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="no pdflatex: apt-get install texlive-latex-recommended"
)


def compiled(body: str, folder: Path) -> str:
    """The log of a document with ``body``; fails if it does not compile."""
    (folder / "tables.tex").write_text(DOCUMENT % body)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "tables.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:]
    assert (folder / "tables.pdf").stat().st_size > 1000
    return (folder / "tables.log").read_text(errors="replace")


def test_every_table_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_run([ROOT / "config/config.yaml"])
    plan = plan_run(config, load_artifacts(ROOT / "config/artifacts", "all"), Paper.read(ROOT / "config/paper"))
    monkeypatch.setattr(numbers, "lookup", lambda entry, run: {"mean": 12.345 + entry["row"], "ci95": 0.67})
    floats = []
    for job in plan.artifacts.values():
        if job["kind"] == "table":
            floats.append(as_latex(job, numbers.collect(job, Run(tmp_path))))
    assert len(floats) >= 14
    log = compiled("\\clearpage\n".join(floats), tmp_path)
    assert "Missing character" not in log
    assert len(re.findall(r"\[\d+\]", log.replace("\n", ""))) >= len(floats) // 2, "a page for every few floats"


def test_a_mistake_would_be_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="Undefined control sequence"):
        compiled(r"\begin{tabular}{l}\topruel\end{tabular}", tmp_path)
