"""Statistics over trials, and over trials, test images and trainings together.

A trial (reference set and random start) and an image meet in every prediction. With s_e the interaction of T and n,

    SE^2 = s_images^2 / n + s_trials^2 / T - s_e^2 / (nT),

for both terms hold the interaction; where a term is below it by chance, it counts as the interaction, so that SE^2 is
never below the larger term. Degrees of freedom are Welch's and Satterthwaite's, the interaction's term included.
"""

import math
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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

    def _terms(self) -> Iterator[tuple[float, int]]:
        """Parts of the squared standard error, each with its degrees of freedom."""
        share, df = 1 - self.n / self.population, (self.n - 1) * (self.t - 1)
        yield share * self.images, self.n - 1
        if self.trials > self.both:
            yield from ((self.trials, self.t - 1), (-share * self.both, df))
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
        return Estimate(self.mean, by_image, by_trial, both, n, t, self.population, models)


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
    rest = float(np.square(x - by_image - by_trial[:, None] + x.mean()).sum())
    both = rest / ((n - 1) * (t - 1) * n * t) if n > 1 and t > 1 else 0.0
    return Estimate(float(x.mean()), images, trials, both, n, t, population, trainings)


def holm(p_values: Iterable[float]) -> list[int]:
    """Positions of the hypotheses that Holm's procedure rejects at a family-wise error of 0.05."""
    p = np.array(list(p_values))
    order = np.argsort(p, kind="stable")
    rejected = np.logical_and.accumulate(p[order] * np.arange(len(p), 0, -1) <= 0.05)
    return [int(position) for position in order[rejected]]
