"""Projected gradient descent on a network's own output (Madry et al., 2018; paper, reference 15)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ask.attacks.linf import Ascent, FeatureLoss, GradientAttack, LossFunction
from ask.attacks.validation import check_labels, checked
from ask.config.attacks import PGDConfig
from ask.models.hooks import evaluating

if TYPE_CHECKING:
    from ask.attacks.references import Subject


def pgd_loss(network: Callable[[Tensor], Tensor], labels: Tensor) -> LossFunction:
    """Cross-entropy of the network's logits, one value an image."""
    return lambda images: F.cross_entropy(network(images), labels, reduction="none")


class PGD(GradientAttack[PGDConfig]):
    """Non-targeted l-infinity PGD with a uniform random start.

    ``options`` are single settings instead of a ``config``, e.g. ``eps=8 / 255`` (a step is then ``eps / 4``), and
    ``generator``, ``seed`` (0) and ``on_gradient``, as :class:`ask.attacks.linf.GradientAttack`.

    >>> adversarial = PGD(network, eps=8 / 255)(images, labels)
    """

    config_type = PGDConfig

    def __init__(self, network: nn.Module, config: PGDConfig | None = None, **options: Any) -> None:
        draws = {name: options.pop(name) for name in ("generator", "seed", "on_gradient") if name in options}
        if not isinstance(network, nn.Module):
            raise ValueError(f"PGD attacks a network, a torch.nn.Module, got a {type(network).__name__}")
        super().__init__(Logits(network), ("logits",), self.configured(config, options), **draws)
        self.network = network

    def ascent(self, images: Tensor, labels: Tensor, *, targeted: bool = False) -> Ascent:
        """As :class:`ask.attacks.linf.GradientAttack`."""
        home = next((parameter.device for parameter in self.network.parameters()), None)
        images, labels = checked(images, labels, home, "the network")
        # Only the network knows how many classes there are; a negative label would silently count for nothing.
        with torch.no_grad(), evaluating(self.network):
            logits = self.network(images[:1])
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ValueError(f"the network must return logits (batch, classes), got {found}")
        check_labels(labels, len(images), logits.shape[1])
        sign = -1 if targeted else 1

        def losses(part: slice) -> FeatureLoss:
            own = labels[part]
            return lambda found: sign * F.cross_entropy(found["logits"], own, reduction="none")

        return Ascent(self, images, self.start(images), losses)


@dataclass(frozen=True)
class Logits:
    """A network's output as features of one layer; equal for the same network, so that its attacks climb together."""

    module: nn.Module

    def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:  # noqa: ARG002  # there is one
        """Logits (batch, classes)."""
        return {"logits": self.module(images)}


def build(config: PGDConfig, subject: "Subject", *, blocks: object = None, **draws: Any) -> PGD:  # noqa: ARG001  # AdvKnn's
    """The attack of a cell."""
    if subject.network is None:
        raise ValueError("PGD attacks a network's own output, and raw pixels have no network; take another model")
    return PGD(subject.network, config, **draws)
