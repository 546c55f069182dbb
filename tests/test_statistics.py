"""Intervals over trials, images and trainings: arithmetic, coverage, and what a bootstrap says."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import f, false_discovery_control, ttest_1samp

from ask.statistics import Estimate, holm, over_trials_and_images, pool_trials, summarise
from tools.chance import describe


def crossed(rng: np.random.Generator, t: int, n: int, shares: tuple[float, float]) -> np.ndarray:
    """Predictions of variance 1 around zero, of which images and trials make shares; the rest is their interaction."""
    images, trials = shares
    by_trial, by_image = rng.normal(0, trials**0.5, (t, 1)), rng.normal(0, images**0.5, n)
    return by_trial + by_image + rng.normal(0, (1 - images - trials) ** 0.5, (t, n))


def drawn(rng: np.random.Generator, t: int, n: int, shares: tuple[float, float], draws: int) -> list[Estimate]:
    """Estimates of many such runs, from the exact distribution of their sums of squares."""
    images, trials = shares
    both = 1 - images - trials
    by_image = (images + both / t) * rng.chisquare(n - 1, draws) / (n - 1) / n
    by_trial = (trials + both / n) * rng.chisquare(t - 1, draws) / (t - 1) / t
    rest = both * rng.chisquare((n - 1) * (t - 1), draws) / ((n - 1) * (t - 1)) / (n * t)
    mean = rng.normal(0, (images / n + trials / t + both / (n * t)) ** 0.5, draws)
    return [Estimate(*each, n=n, t=t) for each in np.stack([mean, by_image, by_trial, rest], 1).tolist()]


GRID = [(images, trials) for images in (0.1, 0.3, 0.6, 0.9) for trials in (0.0, 0.001, 0.01, 0.1)]
"""Shares of images and trials in the variance of one prediction."""


@pytest.mark.parametrize("t", [3, 10, 20])
def test_intervals_cover(t: int) -> None:
    rng = np.random.default_rng(t)
    found = []
    for n in (500, 10_000):
        for shares in GRID:
            estimates = drawn(rng, t, n, shares, 4000)
            found.append(np.mean([abs(each.mean) <= each.half_width for each in estimates]))
    print(f"coverage with {t} trials: {min(found):.3f} to {max(found):.3f}")
    assert min(found) >= (0.91 if t == 3 else 0.935)
    assert max(found) <= (0.99 if t == 3 else 0.965 + 0.004)  # and what 4,000 draws leave open


@pytest.mark.parametrize("t", [3, 10, 20])
def test_intervals_are_rather_too_wide_where_neither_images_nor_trials_vary_by_themselves(t: int) -> None:
    estimates = drawn(np.random.default_rng(t), t, 500, (0.0, 0.0), 4000)
    assert 0.94 <= np.mean([abs(each.mean) <= each.half_width for each in estimates]) <= 0.98


@pytest.mark.parametrize(("t", "low", "high"), [(3, 0.91, 0.99), (10, 0.925, 0.975)])
def test_intervals_of_predictions_cover(t: int, low: float, high: float) -> None:
    """Differences of right and wrong predictions take the values -100, 0 and 100."""
    rng = np.random.default_rng(0)
    hits = []
    for _ in range(1000):
        x = 100.0 * np.trunc(crossed(rng, t, 200, (0.3, 0.01))).clip(-1, 1)
        estimate = over_trials_and_images(x)
        hits.append(abs(estimate.mean) <= estimate.half_width)
    assert low <= np.mean(hits) <= high


@pytest.mark.parametrize("n", [200, 400])
def test_intervals_over_a_test_set_cover_its_mean(n: int) -> None:
    rng = np.random.default_rng(n)
    hits = []
    for _ in range(1500):
        images = rng.normal(0, 0.6**0.5, 400)
        x = images[:n] + rng.normal(0, 0.1, (10, 1)) + rng.normal(0, 0.39**0.5, (10, n))
        estimate = over_trials_and_images(x, population=400)
        hits.append(abs(estimate.mean - images.mean()) <= estimate.half_width)
    assert 0.93 <= np.mean(hits) <= 0.975


def test_standard_error_agrees_with_a_two_way_bootstrap() -> None:
    rng = np.random.default_rng(0)
    ratios = []
    for shares in [(0.3, 0.01), (0.6, 0.01), (0.6, 0.1), (0.9, 0.01)]:
        x = crossed(rng, 20, 500, shares)
        means = []
        for _ in range(400):
            resampled = x[rng.integers(0, 20, 20)][:, rng.integers(0, 500, 500)]
            means.append(resampled.mean())
        ratios.append(over_trials_and_images(x).variance ** 0.5 / np.std(means))
    assert 0.85 <= min(ratios) <= max(ratios) <= 1.1
    assert np.mean(ratios) == pytest.approx(1, abs=0.07)


def test_sources_of_chance_are_those_of_a_two_way_analysis_of_variance() -> None:
    x = np.array([[1.0, 2.0, 6.0], [2.0, 5.0, 8.0]])
    estimate = over_trials_and_images(x)
    assert estimate.mean == 4
    assert estimate.trials * 2 == pytest.approx(np.var([3, 5], ddof=1))
    assert estimate.images * 3 == pytest.approx(np.var([1.5, 3.5, 7], ddof=1))
    residuals = x - x.mean(0) - x.mean(1, keepdims=True) + x.mean()
    assert estimate.both * 6 == pytest.approx((residuals**2).sum() / 2)
    assert estimate.variance == pytest.approx(estimate.images + estimate.trials - estimate.both)
    half = over_trials_and_images(x, population=6)  # the interaction is counted twice in as many of the images alone
    assert half.variance == pytest.approx(estimate.trials + (estimate.images - estimate.both) / 2)


def test_trials_alone_give_the_paper_s_interval() -> None:
    trials = [35.0, 36.5, 36.0, 35.2]
    estimate = over_trials_and_images(np.reshape(trials, (4, 1)))
    assert estimate.half_width == pytest.approx(summarise(trials)["ci95"])
    assert estimate.p_beyond(35.0, np.inf) == 1
    assert estimate.p_beyond(38.0, np.inf) == pytest.approx(ttest_1samp(trials, 38.0).pvalue)


def test_images_alone_of_what_no_trial_changes() -> None:
    right = np.array([[100.0] * 30 + [0.0] * 70])
    estimate = over_trials_and_images(right)
    assert estimate.variance == pytest.approx(100**2 * 0.3 * 0.7 / 99)
    assert over_trials_and_images(right, population=100).variance == 0
    assert over_trials_and_images(np.array([[2.5]])).half_width == 0


def test_never_below_the_larger_term() -> None:
    rng = np.random.default_rng(0)
    for estimate in drawn(rng, 3, 100, (0.1, 0.0), 200):
        assert estimate.variance >= max(estimate.images, estimate.trials)


def test_trainings_add_by_model() -> None:
    x = crossed(np.random.default_rng(0), 10, 50, (0.5, 0.1))
    one, several = over_trials_and_images(x), over_trials_and_images(x, trainings=((0.2, 3), (0.1, 2)))
    assert several.variance == pytest.approx(one.variance + 0.3)
    assert several.df < 5
    assert several.resized(trainings=10).half_width < several.half_width


def test_a_larger_run_has_the_interval_that_was_foreseen() -> None:
    rng = np.random.default_rng(0)
    small = [over_trials_and_images(crossed(rng, 3, 100, (0.4, 0.05))).resized(5, 4).variance for _ in range(300)]
    large = [over_trials_and_images(crossed(rng, 12, 500, (0.4, 0.05))).variance for _ in range(300)]
    assert np.mean(small) == pytest.approx(np.mean(large), rel=0.15)


def compared(rng: np.random.Generator, k: int, common: float, shared: float, own: float) -> list[Estimate]:
    """k differences as lite has them, at 500 images and 3 trials; a share of what chance does is common to all.

    Trials have effects of a standard deviation ``shared`` on all of them alike, and of ``own`` on the first alone.
    """

    def noise(*shape: int) -> np.ndarray:
        return rng.normal(0, 25, (*shape, 1, 500)) + rng.normal(0, 39, (*shape, 3, 500))

    x = common**0.5 * noise(1) + (1 - common) ** 0.5 * noise(k) + rng.normal(0, shared, (3, 1))
    x[0] += rng.normal(0, own, (3, 1))
    return [over_trials_and_images(each) for each in x]


@pytest.mark.parametrize(
    ("common", "shared", "own", "lost"),
    [
        (0.0, 0.0, 0.0, 0.0),
        (0.5, 0.8, 0.0, 0.0),
        (0.0, 1.5, 0.0, 0.0),
        (0.0, 4.0, 0.0, 0.0),
        (0.5, 4.0, 0.0, 0.0),
        (0.5, 0.0, 2.0, 0.035),  # trials vary the first 2.3 times as much as the others
    ],
)
def test_intervals_that_share_trials_cover_as_often(common: float, shared: float, own: float, lost: float) -> None:
    rng = np.random.default_rng(1)
    found: list[list[tuple[bool, float]]] = []
    for _ in range(800):
        estimates = compared(rng, 6, common, shared, own)
        found.append([(abs(e.mean) <= e.half_width, e.half_width) for e in (*estimates, *pool_trials(estimates))])
    covered, widths = np.reshape(found, (-1, 2, 6, 2)).mean(0).transpose(2, 0, 1)
    print(f"coverage {covered[:, 0].round(3)}, of the others {covered[:, 1:].mean(1).round(3)}")
    assert covered[1, 0] >= covered[0, 0] - lost - 0.015  # which is what so many draws leave open
    assert covered[1, 1:].mean() >= covered[0, 1:].mean() - 0.015
    assert widths[1].mean() < widths[0].mean()


def test_trials_are_shared_only_by_what_has_an_interaction_and_is_no_outlier() -> None:
    estimates = compared(np.random.default_rng(0), 4, 0.5, 0.0, 0.0)
    assert pool_trials(estimates[:1]) == estimates[:1]
    twins = pool_trials([estimates[0]] * 3)  # nothing is learned from the same numbers
    assert all(each.variance == pytest.approx(estimates[0].variance) for each in twins)
    assert all(each.df == pytest.approx(estimates[0].df, rel=1e-4) for each in twins)
    fixed = over_trials_and_images(np.array([[100.0] * 30 + [0.0] * 70]))
    wild = replace(estimates[0], trials=1000 * estimates[0].both)
    pooled = pool_trials([*estimates[1:], fixed, wild])
    assert pooled[3:] == [fixed, wild]
    assert pooled[0].pooled > 2
    assert pooled[0].resized(trials=2).pooled == pytest.approx(pooled[0].pooled * 5 / 2)


@pytest.mark.parametrize("share", [0.95, 1.05])
def test_an_outlier_is_one_by_cochrans_test_at_5_percent(share: float) -> None:
    estimates = [replace(one, trials=one.both) for one in compared(np.random.default_rng(0), 4, 0.5, 0.0, 0.0)]
    # The largest share of the four's sum is F / (F + 3); three of them are 1.
    first = replace(estimates[0], trials=share * f.ppf(1 - 0.05 / 4, 2, 6) * estimates[0].both)
    pooled = pool_trials([first, *estimates[1:]])
    assert (pooled[0] == first) == (share > 1)


def test_holm_rejects_while_the_smallest_stand_the_rest() -> None:
    assert holm([0.04]) == [0]
    assert holm([0.04, 0.04]) == []
    assert holm([0.03, 0.9, 0.01]) == [2]
    assert holm([0.02, 0.9, 0.01]) == [2, 0]
    assert holm([]) == []
    p = np.random.default_rng(0).uniform(size=(200, 5)) ** 3
    for values in p:
        assert set(holm(values)) <= set(np.flatnonzero(false_discovery_control(values) <= 0.05))


def test_the_page_says_what_the_evidence_says(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parent.parent
    monkeypatch.chdir(root)
    page = " ".join((root / "docs/statistics.md").read_text().replace("\n>", "").split())
    assert describe(Path("config/lite.yaml")).strip() in page
