"""The ledger of a run: one row for each of the paper's claims."""

import csv
from pathlib import Path
from typing import Any

from ask.paths import Run
from ask.report.claims import attacks, defences, neighbours, theory  # noqa: F401  # they register their claims
from ask.report.claims.evidence import Evidence, MissingEvidenceError
from ask.report.claims.registry import CLAIMS, Claim
from ask.report.claims.verdicts import Finding
from ask.report.numbers import Json, format_plain, write_csv

COLUMNS = (
    "id",
    "statement",
    "source",
    "quantity",
    "paper",
    "measured",
    "value",
    "ci95",
    "verdict",
    "why",
    "artifacts",
    "cells",
    "command",
)
SIGNS = {">=": "≥ ", "<=": "≤ ", "==": "", "~=": "≈ ", "<": "< ", ">": "> "}


def write_ledger(job: Json, claims: Path, run: Run) -> Path:
    """Evaluate every claim from the run's tables and figures; one without data says what is missing.

    Args:
        job: ``kinds`` of the run's artifacts by id, ``stand_ins``, ``labels`` of data sets, and ``command``, which
            makes whatever is missing.
        claims: the paper's claims (``config/paper/claims.csv``).
        run: whose tables and figures are read, and where the ledger is written.
    """
    evidence = Evidence(run, job["kinds"], job["stand_ins"], job["labels"])
    with claims.open(encoding="utf-8", newline="") as file:
        rows = [evaluate(row, CLAIMS[row["id"]], evidence.fresh(), job["command"]) for row in csv.DictReader(file)]
    return write_csv(run.claims, COLUMNS, rows)


def render_claims(job: Json, run: Run) -> list[Path]:
    """The ledger of a run, from the claims that its job names."""
    return [write_ledger(job, Path(job["claims"]), run)]


def evaluate(row: Json, claim: Claim, evidence: Evidence, command: str) -> dict[str, str]:
    """One row of the ledger."""
    missing = ""
    try:
        found = claim.evaluate(evidence)
    except MissingEvidenceError as error:
        found = Finding("not evaluated", "–")
        missing = str(error)
        if not evidence.absent:
            evidence.absent[missing] = None
    verdict, words = found.verdict, [found.why]
    if claim.contradiction:
        if verdict in ("direction only", "not reproduced"):
            words.append(f"As it stands: {verdict}.")
            verdict = "inconsistent in the paper"
        words.append(f"The paper contradicts itself: {claim.contradiction}")
    if evidence.absent:
        words.append(f"Without data: {'; '.join(evidence.absent)}.")
    shown: dict[str, Any] = {
        "id": row["id"],
        "statement": row["statement"],
        "source": row["source_section"],
        "quantity": row["quantity"],
        "paper": SIGNS.get(row["operator"], f"{row['operator']} ") + row["threshold"],
        "measured": found.measured,
        "value": found.value,
        "ci95": found.ci95,
        "verdict": verdict,
        "why": " ".join(filter(None, words)),
        "artifacts": " ".join(evidence.artifacts),
        "cells": " ".join(sorted(evidence.read)),
        "command": command if missing or evidence.absent else "",
    }
    return {column: format_plain(value) for column, value in shown.items()}
