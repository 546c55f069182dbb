"""Projected gradient descent on a network's own output (Madry et al., 2018; paper, reference 15)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .linf import LossFunction, frozen, linf_ascent
from .validation import check_images, check_labels, check_linf


def pgd_loss(network: Callable[[Tensor], Tensor], labels: Tensor) -> LossFunction:
    """Cross-entropy of the network's logits, one value an image."""
    return lambda images: F.cross_entropy(network(images), labels, reduction="none")


@dataclass(frozen=True, kw_only=True)
class PGDConfig:
    """Settings of PGD; ``eps`` and ``step_size`` in [0, 1]."""

    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 20

    def __post_init__(self) -> None:
        check_linf(self.eps, self.step_size, self.steps)


class PGD:
    """Non-targeted l-infinity PGD with a uniform random start.

    >>> attack = PGD(network, PGDConfig(eps=8 / 255), generator=torch.Generator().manual_seed(0))
    >>> adversarial = attack(images, labels)
    """

    def __init__(self, network: nn.Module, config: PGDConfig | None = None, *, generator: torch.Generator) -> None:
        self.network = network
        self.config = config or PGDConfig()
        self.generator = generator

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images (batch, channels, height, width) in [0, 1] for true labels (batch,)."""
        check_images(images)
        check_labels(labels, len(images))
        config = self.config
        with frozen(self.network):
            return linf_ascent(
                pgd_loss(self.network, labels),
                images,
                eps=config.eps,
                step_size=config.step_size,
                steps=config.steps,
                generator=self.generator,
            )
