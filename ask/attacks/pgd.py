"""Projected gradient descent on a network's own output (Madry et al., 2018; paper, reference 15)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ask.attacks.linf import Ascent, FeatureLoss, GradientAttack, LossFunction, frozen, random_start
from ask.attacks.validation import check_images, check_labels
from ask.config.attacks import PGDConfig

if TYPE_CHECKING:
    from ask.attacks.references import Subject


def pgd_loss(network: Callable[[Tensor], Tensor], labels: Tensor) -> LossFunction:
    """Cross-entropy of the network's logits, one value an image."""
    return lambda images: F.cross_entropy(network(images), labels, reduction="none")


class PGD(GradientAttack[PGDConfig]):
    """Non-targeted l-infinity PGD with a uniform random start.

    ``draws`` are ``generator`` and ``on_gradient``, as :class:`ask.attacks.linf.GradientAttack`.

    >>> attack = PGD(network, PGDConfig(eps=8 / 255), generator=torch.Generator().manual_seed(0))
    >>> adversarial = attack(images, labels)
    """

    def __init__(self, network: nn.Module, config: PGDConfig | None = None, **draws: Any) -> None:
        super().__init__(Logits(network), ("logits",), config or PGDConfig(), **draws)
        self.network = network

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images (batch, channels, height, width) in [0, 1] for true labels (batch,)."""
        with frozen(self.network):
            return self.attack(self.ascent(images, labels))

    def ascent(self, images: Tensor, labels: Tensor) -> Ascent:
        """The attack on these images, ready to climb; the network must be in evaluation mode while it does."""
        home = next((parameter.device for parameter in self.network.parameters()), None)
        check_images(images, labels, home, "the network")
        # Only the network knows how many classes there are; a negative label would silently count for nothing.
        with torch.no_grad():
            classes = self.network(images[:1]).shape[1]
        check_labels(labels, len(images), classes)

        def losses(part: slice) -> FeatureLoss:
            own = labels[part]
            return lambda found: F.cross_entropy(found["logits"], own, reduction="none")

        return Ascent(self, images, random_start(images, self.config.eps, self.generator), losses)


@dataclass(frozen=True)
class Logits:
    """A network's output as features of one layer; equal for the same network, so that its attacks climb together."""

    network: nn.Module

    def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:  # noqa: ARG002  # there is one
        """Logits (batch, classes)."""
        return {"logits": self.network(images)}


def build(config: PGDConfig, subject: "Subject", *, blocks: object = None, **draws: Any) -> PGD:  # noqa: ARG001  # AdvKnn's
    """The attack of a cell."""
    if subject.network is None:
        raise ValueError("PGD attacks a network's own output, and raw pixels have no network; take another model")
    return PGD(subject.network, config, **draws)
