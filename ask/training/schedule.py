"""Learning rate as a pure function of the position in training, so that resuming needs no scheduler state."""

import math

from ask.config.training import TrainingSpec

RISE = 0.3
START = 1 / 25
END = START * 1e-4
"""The one-cycle schedule, as torch's OneCycleLR: share of steps that rise, first and last rate over the largest."""


def learning_rate(spec: TrainingSpec, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Rate of step ``step`` in epoch ``epoch`` (both from 0).

    ``step``: constant within an epoch, times ``gamma`` from each milestone on (torch's MultiStepLR).
    ``onecycle``: cosine rise from 1/25 of ``learning_rate`` over the first 30 % of all steps, then cosine fall to 4e-6
    of it (torch's OneCycleLR without momentum cycling; Smith and Topin, 2018).
    """
    if spec.schedule.name == "step":
        return spec.learning_rate * spec.schedule.gamma ** sum(epoch >= m for m in spec.schedule.milestones)
    total = spec.epochs * steps_per_epoch
    position, peak = epoch * steps_per_epoch + step, RISE * total - 1
    if position <= peak:
        return spec.learning_rate * _cosine(START, 1.0, position / peak if peak else 1.0)
    return spec.learning_rate * _cosine(1.0, END, (position - peak) / (total - 1 - peak))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
