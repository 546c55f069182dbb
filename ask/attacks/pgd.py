"""Projected gradient descent on a network's own output (Madry et al., 2018; paper, reference 15)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ask.attacks.linf import Ascent, FeatureLoss, LossFunction, SignSteps, ascend, fitting_batch, frozen, random_start
from ask.attacks.validation import check_devices, check_images, check_labels, check_linf

if TYPE_CHECKING:
    from ask.attacks.subject import Subject
    from ask.config.jobs import AttackSpec


def pgd_loss(network: Callable[[Tensor], Tensor], labels: Tensor) -> LossFunction:
    """Cross-entropy of the network's logits, one value an image."""
    return lambda images: F.cross_entropy(network(images), labels, reduction="none")


@dataclass(frozen=True, kw_only=True)
class PGDConfig:
    """Settings of PGD; ``eps`` and ``step_size`` in [0, 1]."""

    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 20
    batch_size: int | None = None
    """Images attacked at a time; default: :func:`ask.attacks.linf.fitting_batch`."""

    def __post_init__(self) -> None:
        check_linf(self.eps, self.step_size, self.steps)


class PGD:
    """Non-targeted l-infinity PGD with a uniform random start.

    >>> attack = PGD(network, PGDConfig(eps=8 / 255), generator=torch.Generator().manual_seed(0))
    >>> adversarial = attack(images, labels)
    """

    def __init__(
        self,
        network: nn.Module,
        config: PGDConfig | None = None,
        *,
        generator: torch.Generator,
        on_gradient: Callable[[Tensor], None] | None = None,
    ) -> None:
        self.network = network
        self.config = config or PGDConfig()
        self.generator, self.on_gradient = generator, on_gradient
        self.k = self.k_class = 0

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial images (batch, channels, height, width) in [0, 1] for true labels (batch,)."""
        with frozen(self.network):
            return ascend([self.ascent(images, labels)])[0]

    def ascent(self, images: Tensor, labels: Tensor) -> Ascent:
        """The attack on these images, ready to climb; the network must be in evaluation mode while it does."""
        home = next((parameter.device for parameter in self.network.parameters()), None)
        check_devices(images, labels, home, "the network")
        check_images(images)
        logits = Logits(self.network)
        # Only the network knows how many classes there are; a negative label would silently count for nothing.
        with torch.no_grad():
            classes = logits(images[:1], logits.layers)["logits"].shape[1]
        check_labels(labels, len(images), classes)

        def losses(part: slice) -> FeatureLoss:
            own = labels[part]
            return lambda found: F.cross_entropy(found["logits"], own, reduction="none")

        config = self.config
        return Ascent(
            images=images,
            start=random_start(images, config.eps, self.generator),
            features=logits,
            layers=logits.layers,
            losses=losses,
            eps=config.eps,
            steps=config.steps,
            rule=SignSteps(config.step_size),
            batch_size=config.batch_size or fitting_batch(images, 0),
            on_gradient=self.on_gradient,
        )


@dataclass(frozen=True)
class Logits:
    """A network's output as features of one layer."""

    network: nn.Module
    layers: ClassVar[tuple[str, ...]] = ("logits",)

    def __call__(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:  # noqa: ARG002  # there is one
        """Logits (batch, classes)."""
        return {"logits": self.network(images)}


def build(spec: "AttackSpec", subject: "Subject", setting: Mapping[str, Any], **draws: Any) -> PGD:  # noqa: ARG001  # one signature
    """The attack of a cell, whose eps and step size are n of 255."""
    if subject.network is None:
        raise ValueError("PGD attacks a network's own output, and raw pixels have no network; take another model")
    config = PGDConfig(eps=spec.eps / 255, step_size=spec.step_size / 255, steps=spec.steps)
    return PGD(subject.network, config, **draws)
