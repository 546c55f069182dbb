"""The claims ledger of a run: what `config/paper/claims.yaml` asks of its numbers, measured and judged.

A claim asks for settings in the paper's words; on stand-in data sets it gets the stand-in's numbers.
"""

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ask.config.claims import Claim, Claims, Part
from ask.config.run import read_spec
from ask.errors import AskError
from ask.paths import Run
from ask.report.captions import NAMES
from ask.report.numbers import Json, estimate, join_predictions, read_csv, read_predictions, write_csv
from ask.report.verdicts import MOST, Comparison, Finding, judge, region_of
from ask.statistics import Estimate

Row = dict[str, Any]

COLUMNS = (
    *("id", "statement", "source", "quantity", "paper", "measured", "value", "ci95", "interval", "verdict"),
    *("stand_in", "why", "decides", "artifacts", "cells", "command"),
)
SIGNS = {">=": "≥ ", "<=": "≤ ", "==": "", "~=": "≈ ", "<": "< ", ">": "> "}
WORDS = (
    {
        "eps": "eps = {:g}/255",
        "steps": "{} steps",
        "classifier_k": "K = {}",
        "k_in": "attack K = {}",
        "k_out": "K- = {}",
    }
    | {"k": "K = {}", "classes": "C = {}", "spread": "spread {}", "l2": "l2 distance", "conv3+conv4": "Conv 3, 4"}
    | {"adam": "", "non-targeted": ""}
    | NAMES
)
"""How a setting reads in a sentence, where not as it is: by its column, or by its value."""


class MissingEvidenceError(AskError):
    """The run holds no such number; the message says which."""


@dataclass
class Evidence:
    """The numbers of a run. Trial t of two of them on one data set shares references and starts, so they are paired."""

    run: Run
    job: Json
    """See `render_claims`."""
    test_images: Mapping[str, int] = field(default_factory=dict)
    """Numbers of test images of the paper's data sets."""
    stored: dict[str, list[Row]] = field(default_factory=dict)
    """Numbers by artifact."""

    def __post_init__(self) -> None:
        self.predictions = cache(partial(read_predictions, run=self.run))

    def rows(self, artifact: str) -> list[Row]:
        """Numbers of an artifact with their settings, trials and references; of pictures, the rows of their CSV."""
        if artifact not in self.stored:
            kind = self.job["kinds"].get(artifact)
            if kind is None:
                raise MissingEvidenceError(f"{artifact} is not part of run {self.run.root.name}")
            path = self.run.table(artifact) if kind == "table" else self.run.figure(artifact)
            if not kind or not path.is_file():
                raise MissingEvidenceError(f"{artifact} has not been made yet")
            if path.with_suffix(".json").is_file():
                numbers = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
                self.stored[artifact] = [row | row["columns"] for row in numbers]
            else:
                pictures: list[Any] = read_csv(path).to_dict("records")
                self.stored[artifact] = pictures
        return self.stored[artifact]

    def select(self, part: Part, dataset: str, settings: Json) -> list[Row]:
        """Numbers with these settings; raises MissingEvidenceError where any of several values has none."""
        stand_in = self.job["stand_ins"].get(dataset, {})
        asked = {**part.where, **settings} | ({"dataset": stand_in.get("dataset", dataset)} if dataset else {})
        artifact = str(asked.pop("artifact", part.artifact))
        wanted = {name: value if isinstance(value, tuple) else (value,) for name, value in asked.items()}
        if "eps" in wanted:
            wanted["eps"] = tuple(round(float(eps) * stand_in.get("eps_scale", 1.0), 6) for eps in wanted["eps"])
        rows = self.rows(artifact)
        found = [row for row in rows if all(row.get(name) in values for name, values in wanted.items())]
        for name, values in wanted.items():
            if missing := [value for value in values if all(row[name] != value for row in found)]:
                words = [worded(n, missing[0] if n == name else v) for n, v in wanted.items() if n != "dataset"]
                words.insert(0, self.label(dataset))
                raise MissingEvidenceError(f"{artifact} has no number of {', '.join(filter(None, words))}")
        return [row for i, row in enumerate(found) if row not in found[:i]]  # one data set may stand in for two

    def label(self, dataset: str) -> str:
        """A data set as the reader knows it."""
        return str(self.job["labels"].get(dataset, dataset))

    def values(self, row: Row) -> NDArray[Any]:
        """A number by training, trial and, where predictions are kept, image (`join_predictions`)."""
        references = (row["reference"], *row.get("over", ()))
        return join_predictions([self.predictions(one, row["metric"]) for one in references], row["trials"])

    def estimate(self, terms: Sequence[tuple[float, Row]], *, of_these_images: bool) -> tuple[Estimate, int | None]:
        """A sum of numbers on one data set (`ask.report.numbers.estimate`).

        Args:
            terms: coefficients and numbers.
            of_these_images: whether the mean over just the paper's test images is meant.
        """
        population = self.test_images.get(terms[0][1]["dataset"], math.inf) if of_these_images else math.inf
        return estimate([(factor, row, self.values(row)) for factor, row in terms], population)


def worded(column: str, value: object) -> str:
    """A setting in a sentence: ``eps`` and 8.0 read "eps = 8/255"."""
    if isinstance(value, tuple):
        return " or ".join(filter(None, (worded(column, one) for one in value)))
    return WORDS[column].format(value) if column in WORDS else WORDS.get(str(value), str(value))


def sums(part: Part, evidence: Evidence, dataset: str) -> Iterator[tuple[str, list[tuple[float, Row]]]]:
    """Labels and numbers with coefficients, of one data set; raises MissingEvidenceError where one is missing."""
    named = [{**part.where, **settings} for settings in (*part.of, *part.minus)]
    chosen = [evidence.select(part, dataset, settings) for settings in (*part.of, *part.minus)]
    if part.shape == "rank":
        chosen.append([row for row in evidence.select(part, dataset, {}) if all(row is not one for one in chosen[0])])
        named.append(named[0])

    def label(rows: Iterable[Row], *more: str) -> str:
        words = [evidence.label(dataset)] if len(part.datasets) > 1 else []
        for row, settings in zip(rows, named, strict=False):
            columns = (*part.by, *(name for name, value in settings.items() if isinstance(value, tuple)), *more)
            words += [worded(name, row[name]) for name in columns if row[name] != ""]
        return ", ".join(dict.fromkeys(filter(None, words)))

    def group(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in part.by)

    groups: list[set[Any]] = [set(map(group, rows)) for rows in chosen]
    if unpaired := set.union(*groups) - set.intersection(*groups):
        raise MissingEvidenceError(f"{part.artifact} lacks numbers at {', '.join(map(str, min(unpaired, key=str)))}")
    for one in sorted(groups[0], key=str) if part.along else ():
        rows = [row for row in chosen[0] if group(row) == one]
        rows = [row for row in rows if np.mean(row["trials"]) >= part.floor] if part.floor else rows
        x = np.array([float(row[part.along]) for row in rows])
        intercept, slope = np.linalg.pinv(np.stack([np.ones_like(x), x], 1))  # of the least-squares line
        if part.shape == "slope":
            yield label(rows[:1]), list(zip(slope.tolist(), rows, strict=True))
        for i, row in enumerate(rows if part.shape == "straight" else ()):
            weights = np.eye(len(x))[i] - intercept - slope * x[i]
            yield label([row], part.along), list(zip(weights.tolist(), rows, strict=True))
    signs = [1.0] * len(part.of) + [-1.0] * (len(chosen) - len(part.of))
    for numbers in itertools.product(*chosen) if not part.along else ():
        if len(set(map(group, numbers))) == 1:
            yield label(numbers), list(zip(signs, numbers, strict=True))


def compare(part: Part, evidence: Evidence) -> Iterator[Comparison | Row | str]:
    """The comparisons of a part of a claim, the numbers they rest on, and what is missing, in words."""
    for dataset in part.datasets:
        try:
            found = list(sums(part, evidence, dataset))
        except MissingEvidenceError as error:
            yield str(error)
            continue
        yield from (row for _, terms in found for _, row in terms)
        if part.several == "mean":
            terms = [(factor / len(found), row) for _, terms in found for factor, row in terms]
            found = [(f"{evidence.label(dataset)}, mean of {len(found)} settings", terms)]
        for label, terms in found if part.shape != "example" else ():
            # The paper measured its value on all of these images: no others are in question.
            estimate, trials = evidence.estimate(terms, of_these_images=part.shape == "value")
            images = evidence.test_images.get(terms[0][1]["dataset"], MOST["images"])
            settings = terms[0][1] | {"dataset": dataset}
            yield Comparison(label, estimate, *region_of(part), part.unit, trials, images, settings)


def render_claims(job: Json, run: Run) -> list[Path]:
    """Judge every claim by the run's tables and figures; one without data says what is missing.

    Args:
        job: ``claims``, the file of what the paper claims, beside which lies how it is judged (``.yaml``); ``kinds`` of
            the run's artifacts by id, empty of what is not shown; ``stand_ins``, ``{"dataset", "eps_scale"}`` in place
            of the paper's data sets; ``without``, ``labels`` of data sets; ``command``, which makes what is missing.
        run: whose tables and figures are read, and where the ledger is written.
    """
    claims = Path(job["claims"])
    rules = read_spec(Claims, claims.with_suffix(".yaml"))
    stated: list[Any] = read_csv(claims).to_dict("records")
    if unknown := {row["id"] for row in stated} ^ set(rules.claims):
        raise AskError(f"{claims} and its .yaml must hold the same claims; one lacks {', '.join(sorted(unknown))}")
    evidence = Evidence(run, job, rules.test_images)
    rows = [evaluate(row, rules.claims[row["id"]], evidence) for row in stated]
    return [write_csv(run.claims, COLUMNS, rows)]


def evaluate(stated: Json, claim: Claim, evidence: Evidence) -> dict[str, Any]:
    """One row of the ledger."""
    found = [one for part in claim.parts for one in compare(part, evidence)]
    comparisons = [one for one in found if isinstance(one, Comparison)]
    rows = [one for one in found if isinstance(one, dict)]
    missing = dict.fromkeys(one for one in found if isinstance(one, str))
    finding = Finding("not evaluated")
    if comparisons:
        finding = judge(comparisons, claim.contradiction)
    elif rows:
        finding = _example(claim.parts[0], rows)
    words = [finding.why, claim.note, _trainings(rows)]
    if missing and rows:
        words.append(f"On what there is: {finding.verdict}.")
        lost = ", which can't bear it out: it fails on what there is" * (finding.verdict == "not reproduced")
        finding = replace(finding, verdict="undecided", decides=f"The numbers that are missing{lost}.")
    if missing:
        words.append(f"Without data: {'; '.join(missing)}.")
    used = {row.get("dataset") for row in rows}
    stand_ins = [name for name, stand_in in evidence.job["stand_ins"].items() if stand_in["dataset"] in used]
    artifacts = [settings.get("artifact", p.artifact) for p in claim.parts for settings in (*p.of, *p.minus)]
    asked = {*artifacts, *(dataset for part in claim.parts for dataset in part.datasets)}
    planned = {*artifacts} <= {*evidence.job["kinds"]} and not asked & {*evidence.job["without"]}
    return asdict(finding) | {
        **{name: stated[name] for name in ("id", "statement", "quantity")},
        "source": stated["source_section"],
        "paper": SIGNS.get(stated["operator"], f"{stated['operator']} ") + stated["threshold"],
        "verdict": finding.on_stand_in if stand_ins else finding.verdict,
        "stand_in": ", ".join(dict.fromkeys(map(evidence.label, stand_ins))),
        "why": " ".join(filter(None, words)),
        "artifacts": " ".join(dict.fromkeys(map(str, artifacts))),
        "cells": " ".join(sorted({row["reference"] for row in rows if "reference" in row})),
        "command": evidence.job["command"] if missing and planned else "",
    }


def _example(part: Part, rows: Sequence[Row]) -> Finding:
    """Neighbours of another class in a picture, which is one image and decides nothing."""
    wrong: dict[str, list[bool]] = {}
    for row in rows:
        wrong.setdefault(", ".join(worded(name, row[name]) for name in part.by), []).append(row["right"] == "0")
    counts = "; ".join(f"{sum(each)} of {len(each)} ({label})" for label, each in wrong.items())
    return Finding("undecided", counts, decides="Neighbours of many images that are drawn at random.")


def _trainings(rows: Iterable[Row]) -> str:
    """How many trained networks a claim rests on, in a sentence."""
    models = {(row["dataset"], row["model"]): 1 + len(row.get("over", ())) for row in rows}
    models = {key: count for key, count in models.items() if key[1] not in ("", "raw")}
    if not models:
        return ""
    number = sum(models.values())
    networks = {1: "this network", 2: "these two networks"}.get(number, f"these {number} networks")
    each = "one training" if number == len(models) else f"{number / len(models):g} trainings"
    return f"Of {networks}, {each} a model: {', '.join(dict.fromkeys(worded('model', key[1]) for key in models))}."
