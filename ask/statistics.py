"""Statistics over trials, and over trials, test images and trainings together.

A trial (reference set and random start) and an image meet in every prediction. With s_e the interaction of T and n,

    SE^2 = s_images^2 / n + s_trials^2 / T - s_e^2 / (nT),

for both terms hold the interaction; where a term is below it by chance, it counts as the interaction, so that SE^2 is
never below the larger term. Degrees of freedom are Welch's and Satterthwaite's, the interaction's term included.

Several such quantities, as a claim compares them, can share what their trials say (`pool_trials`).
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


def summarise(values: Iterable[float]) -> dict[str, Any]:
    """Mean and half width of the 95 % t-interval over trials (none for a single trial)."""
    trials = [float(a) for a in values]
    ci95 = None
    if len(trials) > 1:
        from scipy.special import stdtrit

        ci95 = float(stdtrit(len(trials) - 1, 0.975) * statistics.stdev(trials) / len(trials) ** 0.5)
    return {"mean": statistics.fmean(trials), "ci95": ci95, "trials": trials}


@dataclass(frozen=True)
class Estimate:
    """A mean over trials and images with its 95 % interval; a single one of either adds no chance."""

    mean: float
    images: float
    """s_images^2 / n, of the images' means over trials."""
    trials: float
    """s_trials^2 / T, of the trials' means over images."""
    both: float
    """s_e^2 / (nT), the interaction."""
    n: int
    """Images."""
    t: int
    """Trials."""
    population: float = math.inf
    """Images that there are, where the mean over just these is meant: their term counts 1 - n / N."""
    trainings: tuple[tuple[float, int], ...] = ()
    """s^2 / S and S of each model that was trained S > 1 times; trainings of two models are not paired."""
    pooled: float = 0.0
    """Degrees of freedom of the trials' term where several quantities share it (`pool_trials`); 0: T - 1."""
    rest: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)
    """The interaction itself (trials, images), scaled to length 1; None: there is none."""

    def _terms(self) -> Iterator[tuple[float, float]]:
        """Parts of the squared standard error, each with its degrees of freedom."""
        share, df = 1 - self.n / self.population, (self.n - 1) * (self.t - 1)
        yield share * self.images, self.n - 1
        if self.trials > self.both:
            yield from ((self.trials, self.pooled or self.t - 1), (-share * self.both, df))
        else:
            yield (1 - share) * self.both, df
        yield from ((part, models - 1) for part, models in self.trainings)

    @cached_property
    def variance(self) -> float:
        """Squared standard error."""
        trainings = sum(part for part, _ in self.trainings)
        return max(sum(part for part, _ in self._terms()), max(self.trials, self.both) + trainings)

    @cached_property
    def df(self) -> float:
        """Degrees of freedom."""
        spread = sum(part**2 / df for part, df in self._terms() if part)
        return self.variance**2 / spread if spread else math.inf

    @cached_property
    def half_width(self) -> float:
        """Half width of the 95 % t-interval."""
        from scipy.special import stdtrit

        return float(stdtrit(self.df, 0.975)) * math.sqrt(self.variance)

    def p_beyond(self, low: float, high: float) -> float:
        """Two-sided p of the mean's distance to [low, high]; 1 within. Below 0.05, the interval lies wholly outside."""
        from scipy.special import stdtr

        distance = max(low - self.mean, self.mean - high)
        if distance <= 0:
            return 1.0
        return 2 * float(stdtr(self.df, -distance / math.sqrt(self.variance))) if self.variance else 0.0

    def resized(self, images: float = 1, trials: float = 1, trainings: float = 1) -> "Estimate":
        """The same mean with so many times the images, trials and trainings (of models that have several)."""
        n, t = math.ceil(self.n * images), math.ceil(self.t * trials)
        both = self.both * self.n * self.t / (n * t)
        by_image = max(self.images - self.both, 0.0) * self.n / n + both
        by_trial = max(self.trials - self.both, 0.0) * self.t / t + both
        models = tuple((part / trainings, math.ceil(count * trainings)) for part, count in self.trainings)
        pooled = self.pooled * (t - 1) / max(self.t - 1, 1)
        return Estimate(self.mean, by_image, by_trial, both, n, t, self.population, models, pooled)


def over_trials_and_images(
    values: NDArray[Any], population: float = math.inf, trainings: tuple[tuple[float, int], ...] = ()
) -> Estimate:
    """Mean of a quantity with its interval over trials and images.

    Args:
        values: of shape (trials, images); paired differences for a difference. A single trial (a quantity that no
            trial changes) leaves the images' chance, a single column (means over images) the trials'.
        population: see `Estimate`; finite where a value is compared with the paper's on the same test set.
        trainings: see `Estimate`.
    """
    x = np.asarray(values, np.float64)
    t, n = x.shape
    by_image, by_trial = x.mean(0), x.mean(1)
    images = float(by_image.var(ddof=1)) / n if n > 1 else 0.0
    trials = float(by_trial.var(ddof=1)) / t if t > 1 else 0.0
    rest = x - by_image - by_trial[:, None] + x.mean()
    length = float(np.linalg.norm(rest)) if n > 1 and t > 1 else 0.0
    both = length**2 / ((n - 1) * (t - 1) * n * t) if length else 0.0
    alone = (rest / length).astype(np.float32) if both else None
    return Estimate(float(x.mean()), images, trials, both, n, t, population, trainings, rest=alone)


def pool_trials(estimates: Sequence[Estimate]) -> list[Estimate]:
    """The same means, the trials' variance of each estimated from the trials of all, as analyses of variance do.

    A few trials say little of their own variance. What is pooled is its ratio to the interaction of the same quantity,
    which images make well known: the mean ratio R, times that interaction. As far as R exceeds 1, trials have effects
    beyond the interaction; these count as the same for all quantities, and the rest is correlated as the interactions
    are. With such correlations r of k quantities, R has (T - 1) k^2 / sum r^2 degrees of freedom. A quantity whose
    ratio is an outlier, by Cochran's test at 5 %, keeps its own variance, and so do those that have no interaction.
    """
    from scipy.special import fdtri

    pooled, groups = list(estimates), dict[int, list[int]]()
    for place, one in enumerate(pooled):
        if one.rest is not None:
            groups.setdefault(one.t, []).append(place)
    for t, places in groups.items():
        if (k := len(places)) < 2:
            continue
        ratios = np.array([pooled[place].trials / pooled[place].both for place in places])
        ratio = float(ratios.mean())
        outlying = ratios.sum() / (1 + (k - 1) / fdtri(t - 1, (k - 1) * (t - 1), 1 - 0.05 / k))
        effects = max(ratio - 1, 0.0)
        rests: list[Any] = [pooled[place].rest for place in places]  # of other numbers of images: not correlated
        correlations = np.array([[float(np.vdot(a, b)) if a.shape == b.shape else 0.0 for b in rests] for a in rests])
        alike = (correlations + effects) / (1 + effects)
        df = (t - 1) * k**2 / float(np.square(alike).sum())
        for place, own in zip(places, ratios, strict=True):
            if own <= outlying:
                pooled[place] = replace(pooled[place], trials=ratio * pooled[place].both, pooled=df)
    return pooled


def holm(p_values: Iterable[float]) -> list[int]:
    """Positions of the hypotheses that Holm's procedure rejects at a family-wise error of 0.05."""
    p = np.array(list(p_values))
    order = np.argsort(p, kind="stable")
    rejected = np.logical_and.accumulate(p[order] * np.arange(len(p), 0, -1) <= 0.05)
    return [int(position) for position in order[rejected]]
