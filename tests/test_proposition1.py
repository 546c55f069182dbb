"""The simulation behind Proposition 1, against what is known of it."""

import math
from functools import cache

import numpy as np
import pytest
from scipy.stats import norm

from ask.config.jobs import StudyJob
from ask.measure import proposition1


@cache
def results() -> list[dict]:
    return proposition1.simulate(StudyJob(id="proposition1", seed=0))["results"]


def one(**wanted: object) -> dict:
    (found,) = [r for r in results() if all(r[key] == value for key, value in wanted.items())]
    return found


def test_the_bound_holds_in_every_gaussian_case_and_for_every_critic() -> None:
    cases = [r for r in results() if r["case"] == "gaussian"]
    assert len(cases) == 6 * 5 * 3
    for case in cases:
        error = case["gap"]["ci95"] / 2.262  # of the mean of ten batches
        assert case["gap"]["mean"] >= -3 * error, case


@pytest.mark.parametrize(
    ("k", "rho", "information", "bounds"),
    [(1, 0.5, 0.575, (-0.09, 0.39, 0.53)), (5, 0.9, 6.21, (0.69, 2.17, 3.74)), (1, 0.0, 0.0, (-0.405, -0.105, -0.020))],
)
def test_bounds_are_those_computed_independently(k: int, rho: float, information: float, bounds: tuple) -> None:
    for classes, bound in zip((3, 10, 50), bounds, strict=True):
        found = one(case="gaussian", form="exact", k=k, spread=rho, classes=classes)
        assert found["information"]["mean"] == pytest.approx(information, abs=0.005)
        assert found["bound"]["mean"] == pytest.approx(bound, abs=0.04)


def test_the_gap_shrinks_with_the_number_of_classes() -> None:
    for k, rho in proposition1.GAUSSIAN:
        gaps = [
            one(case="gaussian", form="exact", k=k, spread=rho, classes=c)["gap"]["mean"] for c in proposition1.BAGS
        ]
        assert gaps == sorted(gaps, reverse=True)


def test_with_independent_references_the_loss_is_log_c() -> None:
    found = one(case="gaussian", form="instance-wise", k=5, spread=0.0, classes=10)
    assert found["ask_loss"]["mean"] == pytest.approx(math.log(10))
    assert found["excess_loss"]["mean"] > 0
    assert found["scaled_bound"]["mean"] == pytest.approx(1.504, abs=0.001)  # above MI = 0: no bound


def test_one_reference_set_for_each_class_breaks_the_bound() -> None:
    for classes, sigma, gap in ((5, 0.1, 0.086), (10, 0.1, -0.038), (20, 0.2, -0.082)):
        found = one(case="one-per-class", classes=classes, spread=sigma)["gap"]
        assert found["mean"] == pytest.approx(gap, abs=0.015)
    assert one(case="one-per-class", classes=10)["gap"]["mean"] < -one(case="one-per-class", classes=10)["gap"]["ci95"]


def test_forms_agree_on_single_references() -> None:
    for form in ("class-wise", "instance-wise"):
        ours = one(case="gaussian", form=form, k=1, spread=0.5, classes=10)["ask_loss"]["trials"]
        exact = one(case="gaussian", form="exact", k=1, spread=0.5, classes=10)["ask_loss"]["trials"]
        assert ours == pytest.approx(exact)


def test_a_bag_is_scored_by_its_references_own_ratios() -> None:
    """Of independent draws by the same generator: their sum, and their log-sum-exp."""
    scores, random = proposition1.gaussian(5, 0.5, np.random.default_rng(0)), np.random.default_rng(0)
    centres, noise = (random.standard_normal((1000, 50, n, 4)) for n in (1, 5))
    references, x = 0.5 * centres + 0.75**0.5 * noise, centres[:, :1]
    ratios = (norm.logpdf(references, 0.5 * x, 0.75**0.5) - norm.logpdf(references)).sum(3)
    np.testing.assert_allclose(scores["class-wise"], ratios.sum(2))
    np.testing.assert_allclose(scores["instance-wise"], np.log(np.exp(ratios).sum(2)))


def test_the_loss_is_a_cross_entropy_with_the_first_bag() -> None:
    scores = np.array([[2.0, 1.0, 0.0]])
    assert proposition1.loss_of(scores)[0] == pytest.approx(-math.log(math.exp(2) / (math.exp(2) + math.e + 1)))
