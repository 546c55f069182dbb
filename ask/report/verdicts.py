"""How a claim is judged: by where 95 % intervals lie, never by means alone (docs/statistics.md has the rules).

A claim is one comparison or several: quantities with their intervals, each with a region in which the claim holds and
perhaps a wider one, its direction.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ask.config.claims import Contradiction, Part
from ask.report.numbers import PLUS_MINUS, format_parts
from ask.statistics import Estimate, holm, pool_trials

Interval = tuple[float, float]
WON: Interval = (0.0, math.inf)
"""Region of a comparison that is won or lost."""
FEWEST_TRIALS = 3
MOST = {"images": 10_000, "trials": 100, "trainings": 30}
"""Up to where it is sought what would decide a claim."""


@dataclass(frozen=True)
class Comparison:
    """One quantity that a claim speaks of."""

    label: str
    """Its settings, in words."""
    estimate: Estimate
    region: Interval
    direction: Interval | None = None
    unit: str = "points"
    trials: int | None = None
    """Trials; None: no trial changes it."""
    images: int = MOST["images"]
    """Images that there are."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The paper's data set, and columns of the number judged."""

    def lies_in(self, region: Interval) -> bool:
        """Whether the whole interval lies between the borders."""
        low, high = (self.estimate.mean + side * self.estimate.half_width for side in (-1, 1))
        return region[0] < low and high < region[1]

    @property
    def slack(self) -> float:
        """How far within the region the mean lies, in half widths; negative: outside."""
        mean, (low, high) = self.estimate.mean, self.region
        return min(mean - low, high - mean) / max(self.estimate.half_width, 1e-9)

    @property
    def text(self) -> str:
        """``8.8±1.2 points``."""
        exact = self.trials is None and not self.estimate.variance
        mean, half_width = format_parts(self.estimate.mean, None if exact else self.estimate.half_width)
        number = mean.replace("-", "\N{MINUS SIGN}") + ("" if exact else f"{PLUS_MINUS}{half_width}")
        return number + ("%" if self.unit == "%" else f" {self.unit}")


@dataclass(frozen=True)
class Finding:
    """What a run says about a claim; columns of the ledger."""

    verdict: str
    measured: str = "–"
    value: float | None = None
    """The measured quantity as a number."""
    ci95: float | None = None
    """Half width of its interval."""
    interval: str = ""
    """What the interval counts."""
    why: str = ""
    """What the number is and how it was judged; full sentences."""
    decides: str = ""
    """What would decide an undecided claim."""
    excluded: bool = False
    """Whether the interval surely lies outside of where the claim holds."""

    @property
    def on_stand_in(self) -> str:
        """The verdict's words where other data stand in for the paper's."""
        if self.verdict == "not evaluated":
            return self.verdict
        is_open = self.verdict == "undecided" or (self.verdict == "direction only" and not self.excluded)
        holds = "holds" if self.verdict == "reproduced" else "does not hold"
        return f"{'undecided' if is_open else holds} on stand-in data"


def region_of(part: Part) -> tuple[Interval, Interval | None]:
    """Where a claim holds, widened by its tolerance but not beyond its direction; and its direction, if it has one."""
    if part.shape in ("wins", "rank"):
        return WON, None
    low, high = part.least, part.most
    if part.value is not None:
        low = high = part.value
    elif part.within is not None:
        low, high = -part.within, part.within
    region = (-math.inf if low is None else low - part.tolerance, math.inf if high is None else high + part.tolerance)
    above = 0.0 if part.shape == "margin" and part.above is None else part.above
    return (region, None) if above is None else ((max(region[0], above), region[1]), (above, math.inf))


def pool(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Comparisons of a claim, with what the trials of all say of their chance."""
    estimates = pool_trials([one.estimate for one in comparisons])
    return [replace(one, estimate=estimate) for one, estimate in zip(comparisons, estimates, strict=True)]


def judge(comparisons: Sequence[Comparison], contradiction: Contradiction | None = None) -> Finding:
    """Verdict on a claim from all its comparisons: each at its own level to reproduce it, by Holm's to refute it."""
    comparisons = pool(comparisons)
    outside = [comparisons[i] for i in holm(c.estimate.p_beyond(*(c.direction or c.region)) for c in comparisons)]
    across = [c for c in comparisons if not c.lies_in(c.direction or c.region)]
    excluded = bool(holm(c.estimate.p_beyond(*c.region) for c in comparisons))
    tightest = min(comparisons, key=lambda c: c.slack)
    words, decides = [_described(comparisons, tightest)], ""
    if any(c.trials is not None and c.trials < FEWEST_TRIALS for c in comparisons):
        verdict, decides = "undecided", f"At least {FEWEST_TRIALS} trials."
    elif all(c.lies_in(c.region) for c in comparisons):
        verdict = "reproduced"
    elif outside:
        verdict = "not reproduced"
        said = contradiction.settings if contradiction else ()
        if all(any(_agrees(one, c) for one in said) for c in outside):
            verdict = "inconsistent in the paper"
    elif across:
        verdict, decides = "undecided", _deciding([(c, c.direction or c.region) for c in across], len(comparisons))
    else:
        verdict = "direction only"
        if not excluded:
            open_ones = [(c, c.region) for c in comparisons if not c.lies_in(c.region)]
            decides = _deciding(open_ones, len(comparisons))
    if verdict in ("direction only", "undecided") and any(c.direction for c in comparisons):
        words.append(f"The claimed region is {'excluded' if excluded else 'still open'}.")
    if outside and len(comparisons) > 1:
        words.append(f"Surely outside: {'; '.join(c.label or c.text for c in outside)}.")
    if contradiction:
        words.append(f"The paper contradicts itself: {contradiction.says}")
    one = f" ({tightest.label}: holds {_range(tightest.region)})" if len({c.region for c in comparisons}) > 1 else ""
    shown: tuple[str, float, float | None] = (tightest.text + one, tightest.estimate.mean, tightest.estimate.half_width)
    if len(comparisons) > 1 and all((c.region, c.direction) == (WON, None) for c in comparisons):
        won = sum(c.slack > 0 for c in comparisons)
        shown = (f"{won} of {len(comparisons)}", won / len(comparisons), None)
    return Finding(verdict, *shown, _counted_by(tightest.estimate), " ".join(words), decides, excluded)


def _agrees(printed: Mapping[str, Any], comparison: Comparison) -> bool:
    """Whether the paper prints a number of these settings on the side of the border on which it was measured."""
    (low, high), own = comparison.direction or comparison.region, comparison.estimate.mean
    settings, said = dict(printed), printed["prints"]
    del settings["prints"]
    return settings.items() <= comparison.settings.items() and (max(said, own) < low or min(said, own) > high)


def _described(comparisons: Sequence[Comparison], tightest: Comparison) -> str:
    """Where the claim holds, and the comparison that comes nearest to breaking it."""
    regions = dict.fromkeys((c.region, c.direction) for c in comparisons)
    words = "; ".join(_range(r) + (f" (direction: {_range(d)})" if d and d != r else "") for r, d in regions)
    if len(comparisons) == 1:
        return f"Holds {words}. {tightest.label}.".removesuffix(" .")
    means, sure = sum(c.slack > 0 for c in comparisons), sum(c.lies_in(c.region) for c in comparisons)
    counts = f"{means} of {len(comparisons)} by their means, {sure} with their intervals"
    return f"Holds {words}: {counts}. The tightest is {tightest.text} ({tightest.label}).".replace(" ().", ".")


def _range(region: Interval) -> str:
    low, high = (f"{border:g}".replace("-", "\N{MINUS SIGN}") for border in region)
    if math.isinf(region[0]):
        return f"below {high}"
    return f"above {low}" if math.isinf(region[1]) else f"from {low} to {high}"


def _counted_by(estimate: Estimate) -> str:
    """The sources of chance that an interval counts."""
    trials = "trials (pooled)" if estimate.pooled else "trials"
    counted = ["images"] * (1 < estimate.n < estimate.population) + [trials] * (estimate.t > 1)
    counted += ["trainings"] * bool(estimate.trainings)
    return "trials alone" if counted == ["trials"] and estimate.n == 1 else ", ".join(counted)


def _deciding(across: Sequence[tuple[Comparison, Interval]], of: int) -> str:
    """What would decide, in words: the first that could refute the claim or, if all hold by their means, the last."""
    found = [(c.estimate.p_beyond(*region), _leaving(c, region, of)) for c, region in across]
    refuting = [needed for p, needed in found if p < 1]
    return (min(refuting) if refuting else max(needed for _, needed in found))[1]


def _leaving(comparison: Comparison, region: Interval, of: int) -> tuple[float, str]:
    """By what factor a run is too small for an interval to leave the border it lies on, and what would do, in words."""
    estimate, outside = comparison.estimate, comparison.estimate.p_beyond(*region) < 1
    distance = min(abs(estimate.mean - border) for border in region)
    models = min((count for _, count in estimate.trainings), default=1)
    sizes = {name: size for name, size in zip(MOST, (estimate.n, estimate.t, models), strict=True) if size > 1}
    most = {name: max((MOST | {"images": comparison.images})[name] / size, 1) for name, size in sizes.items()}

    def enough(names: Sequence[str], factor: float) -> bool:
        larger = estimate.resized(**{name: min(factor, most[name]) for name in names})
        return larger.p_beyond(*region) * of <= 0.05 if outside else larger.half_width < distance

    found: list[tuple[float, str]] = []
    for names in dict.fromkeys([*((name,) for name in sizes), tuple(sizes)]):
        low, high = 1.0, max((most[name] for name in names), default=1.0)
        if enough(names, high) and not (found and len(names) > 1):
            for _ in range(12):
                middle = math.sqrt(low * high)
                low, high = (low, middle) if enough(names, middle) else (middle, high)
            counts = (f"{math.ceil(sizes[name] * min(high, most[name])):,} {name}" for name in names)
            found.append((high, " and ".join(counts)))
    where = f" ({comparison.label})" if comparison.label else ""
    if not found:
        return math.inf, f"No number of {', '.join(sizes)} within reach: the mean lies too near the border{where}."
    return min(found)[0], f"About {' or '.join(text for _, text in found)}, if the mean stays{where}."
