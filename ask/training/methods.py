"""Training methods: a base gives the loss of a batch, a regulariser may add a term to it.

To add one, write a module with a class like :class:`Base` or :class:`Regulariser` and a function
``build(method, training)`` that makes it, and name the module in ``ask.config.training.METHOD_HOMES``; the loop stays
as it is.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ask.attacks.linf import linf_ascent, random_start
from ask.attacks.pgd import pgd_loss
from ask.config.training import METHOD_HOMES, ModelSpec, TrainingSpec
from ask.models.networks import Network
from ask.training.crafting import Crafting, as_it_comes
from ask.training.images import ResidentImages


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What a step has at hand."""

    images: Tensor
    """Augmented images (batch, channels, side, side) in [0, 1]."""
    labels: Tensor
    """(batch,), int64."""
    generator: torch.Generator
    """On the images' device, seeded for this step. The base draws first, so a regulariser changes none of its draws."""
    target: Network
    """The network at the start of the step, in evaluation mode, without parameter gradients, batch norm folded: what
    adversarial images are crafted on."""
    source: ResidentImages
    """Where a regulariser draws its reference images."""
    crafting: Crafting = as_it_comes
    """What calls the functions that craft adversarial images; draws are made outside of them."""


@dataclass(frozen=True, kw_only=True)
class BaseOutput:
    """What a base hands to the loop and to the regulariser."""

    loss: Tensor
    """Scalar, with gradient."""
    correct: Tensor
    """Number of adversarial images classified as their label, 0-d, on the device."""
    adversarial: Tensor
    """Adversarial images of the batch, without gradient."""
    features: dict[str, Tensor]
    """Features of ``adversarial`` at the layers that were asked for, from the training-mode pass of ``loss``."""


class Base(Protocol):
    """Loss of a batch; leaves ``network`` in training mode and changes nothing of it but batch-norm statistics."""

    def __call__(self, network: Network, batch: Batch, layers: Sequence[str]) -> BaseOutput:
        """Loss of ``batch``, with features of the adversarial images at ``layers``."""
        ...


class Regulariser(Protocol):
    """A scalar term, weighted, to add to the base's loss."""

    layers: Sequence[str]
    """Layers whose features it reads from the base's own pass; empty if it makes its own."""
    state: dict[str, Tensor]
    """Tensors that its calls change in place; checkpoints keep them."""

    def __call__(self, network: Network, batch: Batch, output: BaseOutput) -> Tensor:
        """The term, times its weight; 0-d, with gradient."""
        ...


def training_precision(device: torch.device) -> AbstractContextManager[object]:
    """Context of a training-mode pass: bf16 autocast on CUDA, plain fp32 on a CPU, where bf16 is slower."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


class AdversarialTraining:
    """Cross-entropy on PGD examples, crafted in evaluation mode from a random start (Madry et al., 2018)."""

    def __init__(self, spec: TrainingSpec) -> None:
        self.eps, self.step_size, self.steps = spec.eps / 255, spec.step_size / 255, spec.steps

    def craft(self, batch: Batch, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial copies of images (batch, channels, side, side) in [0, 1], without gradient."""

        def climb(images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
            return linf_ascent(
                pgd_loss(batch.target, labels),
                images,
                eps=self.eps,
                step_size=self.step_size,
                steps=self.steps,
                start=start,
            )

        return batch.crafting("pgd", climb, images, labels, random_start(images, self.eps, batch.generator))

    def __call__(self, network: Network, batch: Batch, layers: Sequence[str]) -> BaseOutput:
        """See :class:`Base`."""
        adversarial = self.craft(batch, batch.images, batch.labels)
        with training_precision(adversarial.device):
            logits, features = network.forward_with_features(adversarial, layers)
            loss = F.cross_entropy(logits, batch.labels)
        correct = (logits.detach().argmax(1) == batch.labels).sum()
        return BaseOutput(loss=loss, correct=correct, adversarial=adversarial, features=features)


def make_method(method: ModelSpec, training: TrainingSpec) -> tuple[Base, Regulariser | None]:
    """The base and regulariser that ``method`` names; a regulariser of weight 0 is none at all.

    Raises:
        ValueError: a base that trains no network (``none``).
    """
    if method.base == "none":
        raise ValueError(f"{method.label}: base 'none' trains no network; choose from at, trades")
    base: Base = AdversarialTraining(training)
    if method.base in METHOD_HOMES:
        base = import_module(METHOD_HOMES[method.base]).build(method, training)
    options = method.snn or method.ask
    if options is None or options.weight == 0:
        return base, None
    regulariser: Regulariser = import_module(METHOD_HOMES[method.regulariser]).build(method, training)
    return base, regulariser
