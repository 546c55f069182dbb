"""What is watched of an ascent: whether its result may be used, and the images that it passes through on its way.

An ascent of 100 steps is after 20 of them where one of 20 steps ends, bit for bit: the same images climb from the same
start in the same batches. So cells of fewer steps are measured beside the one of most.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ask.attacks.linf import GradientAttack, Step, Unsound
from ask.errors import AskError

ROUNDING = 1e-6
"""How far float32 may carry an image beyond the eps-ball."""


class InvalidAttackError(AskError):
    """An attack left the eps-ball or the range of images; its result must not be used."""


class Validity:
    """Largest perturbation, range, and shares of image gradients that vanish or are not finite, over a cell's steps."""

    def __init__(self) -> None:
        self.max_linf, self.low, self.high = 0.0, 1.0, 0.0
        self.unsound = Unsound()

    def see_gradient(self, gradient: Tensor) -> None:
        """Count the images whose gradient is zero everywhere, or holds NaN or infinity; stays on the device."""
        self.unsound.see(gradient)

    def see_images(self, clean: Tensor, adversarial: Tensor, eps: float) -> None:
        """Raises InvalidAttackError with the worst image if the perturbation or the range is violated."""
        distance = (adversarial - clean).abs().flatten(1).amax(1)
        worst = int(distance.argmax())
        low, high = (float(v) for v in torch.aminmax(adversarial))
        self.max_linf = max(self.max_linf, float(distance[worst]))
        self.low, self.high = min(self.low, low), max(self.high, high)
        if not float(distance[worst]) <= eps + ROUNDING:
            raise InvalidAttackError(
                f"image {worst} was moved by {float(distance[worst]):.6f}, more than eps = {eps:.6f}"
            )
        if not (low >= 0 and high <= 1):
            outside = ((adversarial < 0) | (adversarial > 1) | adversarial.isnan()).flatten(1).any(1)
            raise InvalidAttackError(f"image {int(outside.int().argmax())} leaves [0, 1]: {low:.6f} to {high:.6f}")

    def counts(self) -> dict[str, float]:
        """What was seen, JSON-able; eps and range in [0, 1]."""
        zeros, unsound = int(self.unsound.zero), int(self.unsound.found)
        seen = {"gradients": self.unsound.seen, "zero_gradients": zeros, "non_finite_gradients": unsound}
        return {"max_linf": self.max_linf, "min": self.low, "max": self.high, **seen}

    @staticmethod
    def over(counts: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
        """The same of several trials, from each one's :meth:`counts`; None: no images or gradients were seen."""
        seen = [one for one in counts if one["min"] <= one["max"]]
        gradients = sum(one["gradients"] for one in counts)
        return {
            "max_linf": max((one["max_linf"] for one in seen), default=None),
            "min": min((one["min"] for one in seen), default=None),
            "max": max((one["max"] for one in seen), default=None),
            "zero_gradient_share": sum(one["zero_gradients"] for one in counts) / gradients if gradients else None,
            "non_finite_gradient_share": (
                sum(one["non_finite_gradients"] for one in counts) / gradients if gradients else None
            ),
        }


class WatchedClimb:
    """Validity of one attack after each of some numbers of steps, the largest of which is its own; 0: of any number."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.seen, self._calls = {count: Validity() for count in counts}, 0

    def see_gradient(self, gradient: Tensor) -> None:
        """Count a step's gradient; parts of the images climb one after the other, each in all steps."""
        whole = max(self.seen)
        taken = self._calls % whole if whole else -1
        self._calls += 1
        for count, validity in self.seen.items():
            if taken < count:
                validity.see_gradient(gradient)


class Waypoints:
    """Steps by an attack's own rule that keep the images at some of them; attacks that climb together share one."""

    def __init__(self, steps: Iterable[int]) -> None:
        self._found: dict[int, list[Tensor]] = {count: [] for count in steps}

    def follow(self, attacks: Sequence[GradientAttack[Any]]) -> None:
        """Let attacks with one and the same rule step by this one."""
        for attack in attacks:
            self._rule, attack.rule = attack.rule, self

    def __call__(self, low: Tensor, high: Tensor, start: Tensor) -> Step:
        """As :data:`ask.attacks.linf.StepRule`."""
        step, taken = self._rule(low, high, start), 0

        def watched(current: Tensor, gradient: Tensor) -> Tensor:
            nonlocal taken
            images, taken = step(current, gradient), taken + 1
            if taken in self._found:
                self._found[taken].append(images.clone())  # the next step may change them
            return images

        return watched

    def images(self, steps: int, size: int) -> tuple[Tensor, ...]:
        """What each attack's images, so many of each, were after so many steps."""
        parts: tuple[Tensor, ...] = torch.cat(self._found[steps]).split(size)
        return parts
