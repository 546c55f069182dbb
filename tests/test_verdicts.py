"""Verdicts of synthetic evidence with known truth, at the size of a small run: 500 images, 3 trials."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ask.config.claims import Contradiction, Part
from ask.paths import Run
from ask.report.claims import Evidence, compare
from ask.report.numbers import VERDICTS
from ask.report.verdicts import Comparison, Finding, judge, pool, region_of
from ask.statistics import Estimate

N, T = 500, 3
SHARES = {"images": 25.0, "trials": 0.8, "both": 39.0}
"""Standard deviations of a paired difference of predictions, in points, as the lite run has them."""


SHOWN = {"dataset": "cifar10", "metric": "dknn_robust_accuracy"}


class Synthetic(Evidence):
    """Numbers that are given, not read."""

    def rows(self, artifact: str) -> list[dict[str, Any]]:
        return self.stored[artifact]

    def values(self, row: dict[str, Any]) -> np.ndarray:
        return row["values"]


def noise(rng: np.random.Generator, n: int = N) -> np.ndarray:
    """What chance adds to a difference: half of the images' and trials' is common to all settings (see `evidence`)."""
    by_image, by_trial = rng.normal(0, SHARES["images"], n), rng.normal(0, SHARES["trials"], (T, 1))
    return by_image + by_trial + rng.normal(0, SHARES["both"], (T, n))


def evidence(rng: np.random.Generator, truths: list[float], n: int = N) -> Evidence:
    """Numbers of model ``own`` that exceed those of ``other`` by these truths, one a setting."""
    common, rows = noise(rng, n), []
    for setting, truth in enumerate(truths):
        own = truth + (common + noise(rng, n)) * 0.5**0.5
        for model, values in (("own", own), ("other", np.zeros((T, n)))):
            rows.append(SHOWN | {"model": model, "eps": float(setting), "values": values[None]})
    job = {"kinds": {"a": "table"}, "stand_ins": {}, "without": [], "labels": {}, "command": ""}
    return Synthetic(Run(Path()), job, stored={"a": rows})


def half_width(part: Part, settings: int) -> float:
    """Mean half width of a part's widest comparison, as it is judged."""
    rng = np.random.default_rng(1)
    drawn = (pool(compared(part, evidence(rng, [0.0] * settings))) for _ in range(100))
    found = [[one.estimate.half_width for one in comparisons] for comparisons in drawn]
    return float(np.mean(found, 0).max())


def compared(part: Part, numbers: Evidence) -> list[Comparison]:
    return [one for one in compare(part, numbers) if isinstance(one, Comparison)]


def part(shape: str, **more: Any) -> Part:
    pair: dict[str, Any] = {"by": ["eps"], "of": {"model": "own"}, "minus": {"model": "other"}}
    return Part.model_validate({"shape": shape, "artifact": "a", **pair, **more})


ALONE = {"by": [], "of": {"model": "own", "eps": 0}}
CURVE = {"by": [], "of": {"model": "own"}, "minus": [], "along": "eps"}
FAR = 12.0
"""Where all comparisons lie but the one that a case is about: about four half widths within the region."""
CASES: dict[str, tuple[Part, Callable[[float], list[float]]]] = {
    # Each with the truths of which the nearest to a border lies so far within the region.
    "margin": (part("margin", least=13), lambda inside: [13 + inside, *[13 + FAR] * 3]),
    "value": (
        part("value", value=10, tolerance=8, **ALONE, minus={"model": "other", "eps": 0}),
        lambda inside: [18 - inside, *[0.0] * 3],
    ),
    "wins": (part("wins"), lambda inside: [inside, *[FAR] * 3]),
    "rank": (
        part("rank", by=[], where={"model": "own"}, of={"eps": 1}, minus=[]),
        lambda inside: [-inside, 0.0, *[-FAR] * 2],
    ),
    "equivalence": (part("equivalence", within=FAR), lambda inside: [FAR - inside, *[0.0] * 3]),
    "at most": (part("equivalence", most=2), lambda inside: [2 - inside, *[2 - FAR] * 3]),
    "ratio": (
        part("ratio", least=10, most=30, unit="times", **ALONE, minus=[]),
        lambda inside: [10 + inside, *[0.0] * 3],
    ),
    "slope": (part("slope", most=0, **CURVE), lambda inside: [-inside * x for x in range(4)]),
    "straight": (part("straight", within=FAR, **CURVE), lambda inside: [(FAR - inside) * 2.5, *[0.0] * 3]),
    "mean": (part("margin", least=13, several="mean"), lambda inside: [13 + inside] * 4),
    "all six": (part("wins"), lambda inside: [inside] * 6),
    "all twelve": (part("wins"), lambda inside: [inside] * 12),
    "one of twelve": (part("wins"), lambda inside: [inside, *[FAR] * 11]),
}


def verdicts(part: Part, truths: list[float], draws: int = 1000) -> Counter[str]:
    rng = np.random.default_rng(0)
    return Counter(judge(compared(part, evidence(rng, truths))).verdict for _ in range(draws))


@pytest.mark.parametrize("name", CASES)
def test_truth_on_the_border_is_hardly_ever_called_reproduced(name: str) -> None:
    part, truths = CASES[name]
    found = verdicts(part, truths(0.0))
    print(name, found)
    assert found["reproduced"] <= 50
    assert found["not reproduced"] <= 50


@pytest.mark.parametrize("name", CASES)
def test_truth_two_half_widths_within_the_region_is_mostly_called_reproduced(name: str) -> None:
    part, truths = CASES[name]
    found = verdicts(part, truths(2 * half_width(part, len(truths(0.0)))))
    print(name, found)
    assert found["reproduced"] >= 800
    assert not found["not reproduced"]


@pytest.mark.parametrize("name", CASES)
def test_truth_four_half_widths_outside_is_mostly_called_wrong(name: str) -> None:
    part, truths = CASES[name]
    below = -13 if name in ("margin", "mean") else 0  # beyond the direction
    found = verdicts(part, truths(below - 4 * half_width(part, len(truths(0.0)))), 300)
    print(name, found)
    assert found["not reproduced"] >= 240
    assert not found["reproduced"]


def lying(mean: float, half_width: float, rule: Part, **more: Any) -> Comparison:
    """A comparison whose interval has this half width: over 500 images and 3 trials, of which images have the most."""
    estimate = Estimate(mean, 1.0, 0.25, 0.2, n=500, t=3)
    scale = (half_width / estimate.half_width) ** 2
    estimate = Estimate(mean, 1.0 * scale, 0.25 * scale, 0.2 * scale, n=500, t=3)
    return Comparison("here", estimate, *region_of(rule), trials=3, **more)


@pytest.mark.parametrize(
    ("rule", "intervals", "verdict"),
    [
        (part("margin", least=13, tolerance=0.5), [(13.6, 1.0)], "reproduced"),
        (part("margin", least=13, tolerance=0.5), [(13.4, 1.0)], "direction only"),
        (part("margin", least=13), [(5.0, 1.0)], "direction only"),
        (part("margin", least=13), [(0.9, 1.0)], "undecided"),
        (part("margin", least=13), [(-1.1, 1.0)], "not reproduced"),
        (part("margin", least=0.3, tolerance=0.5), [(0.3, 0.4)], "undecided"),  # never beyond the direction
        (part("value", value=4.8, tolerance=1.5, above=0), [(4.8, 1.4)], "reproduced"),
        (part("value", value=4.8, tolerance=1.5, above=0), [(8.0, 0.1)], "direction only"),
        (part("value", value=4.8, tolerance=1.5), [(8.0, 0.1)], "not reproduced"),
        (part("value", value=0.7, tolerance=1.5, above=0), [(-0.1, 0.3)], "undecided"),
        (part("equivalence", within=2), [(0.0, 2.1)], "undecided"),  # a lack of power is no equivalence
        (part("equivalence", within=2), [(0.0, 1.9)], "reproduced"),
        (part("equivalence", most=2), [(-9.0, 8.0)], "reproduced"),
        (part("wins"), [(1.0, 0.9), (2.0, 1.9)], "reproduced"),
        (part("wins"), [(1.0, 0.9), (2.0, 2.1)], "undecided"),
        (part("wins"), [(1.0, 0.9), (-2.0, 1.9)], "undecided"),  # 5 % alone, not of two by Holm's correction
        (part("wins"), [(1.0, 0.9), (-2.0, 1.0)], "not reproduced"),
    ],
)
def test_verdicts_are_where_intervals_lie(rule: Part, intervals: list[tuple[float, float]], verdict: str) -> None:
    assert judge([lying(*interval, rule) for interval in intervals]).verdict == verdict


def test_the_row_says_whether_the_claimed_region_is_excluded() -> None:
    rule = part("margin", least=13)
    assert "The claimed region is excluded." in judge([lying(5.0, 1.0, rule)]).why
    found = judge([lying(12.0, 2.0, rule)])
    assert "The claimed region is still open." in found.why
    assert found.decides.startswith("About ")
    assert judge([lying(0.5, 1.0, rule)]).why.startswith("Holds above 13 (direction: above 0). here.")


def test_what_would_decide_does() -> None:
    comparison = lying(1.4, 1.5, part("wins"))
    words = judge([comparison]).decides
    images, trials = (int(size.replace(",", "")) for size in re.findall(r"([\d,]+) (?:images|trials)", words))
    assert words.startswith(f"About {images:,} images or {trials:,} trials, if the mean stays")
    estimate = comparison.estimate
    assert estimate.resized(images=images / 500).half_width <= 1.4 < estimate.resized(images=images / 520).half_width
    assert estimate.resized(trials=trials / 3).half_width <= 1.4
    few = judge([lying(1.4, 1.5, part("wins"), images=500)]).decides
    assert few == f"About {trials} trials, if the mean stays (here)."
    assert judge([lying(0.0001, 1.5, part("wins"))]).decides.startswith("No number of images, trials within reach")


def test_what_would_refute_one_of_several_comparisons_does() -> None:
    rule = part("wins")
    open_ones = [lying(1.0, 0.9, rule), lying(-2.0, 1.9, rule)]
    found = judge(open_ones)
    assert found.verdict == "undecided"
    (images,) = re.findall(r"About ([\d,]+) images", found.decides)
    factor = int(images.replace(",", "")) / 500
    assert factor > 1.1, "the interval lies outside already, but not by Holm's level"
    larger = [replace(one, estimate=one.estimate.resized(images=factor)) for one in open_ones]
    assert judge(larger).verdict == "not reproduced"


def test_what_would_refute_a_claim_decides_it_before_what_would_bear_it_out() -> None:
    open_ones = [lying(0.01, 1.0, part("wins")), lying(-0.9, 1.0, part("wins"))]
    assert re.match(r"About \d+ images, if the mean stays", judge(open_ones).decides)


def test_a_contradiction_must_be_of_what_fails() -> None:
    rule = part("wins")
    failing = lying(-5.0, 1.0, rule, settings={"dataset": "imagenette", "eps": 8.0, "trials": [1.0]})
    said = Contradiction(settings={"dataset": "imagenette", "eps": 8, "prints": -1.5}, says="Table 2 does.")
    assert judge([failing], said).verdict == "inconsistent in the paper"
    other = lying(-5.0, 1.0, rule, settings={"dataset": "cifar10", "eps": 8.0})
    assert judge([failing, other], said).verdict == "not reproduced"
    assert judge([lying(5.0, 1.0, rule)], said).verdict == "reproduced"
    more = {"dataset": "cifar10", "prints": -0.1}
    either = Contradiction(settings=[*said.settings, more], says="Both do.")
    assert judge([failing, other], either).verdict == "inconsistent in the paper"


@pytest.mark.parametrize(("measured", "prints", "inconsistent"), [(-9, -6.5, True), (9, -6.5, False), (9, 6.5, True)])
def test_a_contradiction_lies_beyond_the_same_border(measured: float, prints: float, inconsistent: bool) -> None:
    """A table that says otherwise in one direction does not excuse what is measured in the other."""
    rule = part("equivalence", within=3)
    said = Contradiction(settings={"dataset": "imagenette", "prints": prints}, says="Table 9 does.")
    found = judge([lying(measured, 1.0, rule, settings={"dataset": "imagenette"})], said)
    assert found.verdict == ("inconsistent in the paper" if inconsistent else "not reproduced")
    with pytest.raises(ValueError, match="`prints` is the quantity as the paper's own table has it"):
        Contradiction(settings={"dataset": "imagenette"}, says="Table 9 does.")


def test_a_margin_that_the_paper_prints_smaller_excuses_no_defeat() -> None:
    rule = part("margin", least=13)
    said = Contradiction(settings={"dataset": "imagenette", "prints": 3.2}, says="Table 2 does.")
    of = {"settings": {"dataset": "imagenette"}}
    assert judge([lying(-10.0, 1.0, rule, **of)], said).verdict == "not reproduced"
    assert judge([lying(3.2, 1.0, rule, **of)], said).verdict == "direction only"


@pytest.mark.parametrize(
    ("finding", "words"),
    [
        (Finding("reproduced"), "holds on stand-in data"),
        (Finding("direction only", excluded=True), "does not hold on stand-in data"),
        (Finding("direction only"), "undecided on stand-in data"),
        (Finding("inconsistent in the paper"), "does not hold on stand-in data"),
        (Finding("undecided", excluded=True), "undecided on stand-in data"),
        (Finding("not evaluated"), "not evaluated"),
    ],
)
def test_stand_in_data_reproduce_nothing(finding: Finding, words: str) -> None:
    assert finding.on_stand_in == words
    assert words in VERDICTS
