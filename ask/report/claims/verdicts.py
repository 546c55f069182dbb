"""How a measured quantity is judged: one rule for each kind of claim.

Verdicts compare means with the paper's number; the interval decides whether at least the direction is certain.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ask.report.claims.evidence import Measure, lowest, worded
from ask.report.numbers import PLUS_MINUS, format_parts

Verdict = Literal["reproduced", "direction only", "not reproduced", "inconsistent in the paper", "not evaluated"]


@dataclass(frozen=True)
class Finding:
    """What a run says about a claim."""

    verdict: Verdict
    measured: str
    """The measured quantity, for reading."""
    value: float | None = None
    """The same as a number."""
    ci95: float | None = None
    why: str = ""
    """What the number is and how it was judged, where the claim does not say it; full sentences."""


def at_least(measure: Measure, threshold: float, *, unit: str = "points", why: str = "") -> Finding:
    """A quantity that shall reach a positive threshold; direction only: it is surely above zero."""
    if round(measure.mean, 1) >= threshold:
        verdict: Verdict = "reproduced"
    else:
        verdict = "direction only" if measure.surely_positive else "not reproduced"
    return _finding(verdict, measure, unit, why)


def near(measure: Measure, value: float, *, within: float, unit: str = "points", why: str = "") -> Finding:
    """A quantity that shall have a value; direction only: it surely has its sign, if the value has one."""
    if abs(measure.mean - value) <= within:
        verdict: Verdict = "reproduced"
    else:
        signed = measure if value > 0 else -measure
        verdict = "direction only" if value != 0 and signed.surely_positive and unit == "points" else "not reproduced"
    return _finding(verdict, measure, unit, f"{why} Judged within {within:g} {unit or 'of it'}.".strip())


def positive(measure: Measure, *, unit: str = "points", why: str = "") -> Finding:
    """A quantity that shall be above zero; direction only: its interval holds zero."""
    verdict: Verdict = "reproduced" if measure.surely_positive else "direction only"
    return _finding(verdict if measure.mean > 0 else "not reproduced", measure, unit, why)


def negative(measure: Measure, *, unit: str = "points", why: str = "") -> Finding:
    """A quantity that shall be below zero; direction only: its interval holds zero."""
    return _finding(positive(-measure).verdict, measure, unit, why)


def at_most(measure: Measure, threshold: float, *, unit: str = "points", why: str = "") -> Finding:
    """A quantity that shall not exceed a threshold."""
    return _finding("reproduced" if round(measure.mean, 1) <= threshold else "not reproduced", measure, unit, why)


def wins(differences: Mapping[Any, Measure], *, why: str = "") -> Finding:
    """Comparisons of which all shall be won (positive); direction only: more than half are, and so is their mean.

    The paper counts means; how many lie beyond their interval stands in ``why``.
    """
    won = sum(each.mean > 0 for each in differences.values())
    sure = sum(each.surely_positive for each in differences.values())
    total = len(differences)
    mean = statistics.fmean(each.mean for each in differences.values())
    if won == total:
        verdict: Verdict = "reproduced"
    else:
        verdict = "direction only" if 2 * won > total and mean > 0 else "not reproduced"
    setting, least = lowest(differences)
    words = f"{sure} beyond the interval; the smallest difference is {text_of(least)} ({worded(setting)})."
    return Finding(verdict, f"{won} of {total}", won / total, None, f"{why} {words}".strip())


def judged(holds: bool, measure: Measure, *, unit: str = "points", direction: bool = False, why: str = "") -> Finding:
    """A claim with a rule of its own, which ``why`` states."""
    verdict: Verdict = "reproduced" if holds else "direction only" if direction else "not reproduced"
    return _finding(verdict, measure, unit, why)


def text_of(measure: Measure, unit: str = "points") -> str:
    """``8.8±1.2 points``."""
    mean, half_width = format_parts(measure.mean, measure.ci95)
    text = mean.replace("-", "\N{MINUS SIGN}") + (f"{PLUS_MINUS}{half_width}" if half_width is not None else "")
    return text + ("%" if unit == "%" else f" {unit}" if unit else "")


def _finding(verdict: Verdict, measure: Measure, unit: str, why: str) -> Finding:
    return Finding(verdict, text_of(measure, unit), measure.mean, measure.ci95, why)
