"""Training methods: a base gives the loss of a batch, a regulariser may add a term to it.

To add one, declare its options in :mod:`ask.config.training`, name a module in ``METHOD_HOMES`` there, and write it: a
class like :data:`Base` or :class:`Regulariser`, made of its options and the training settings, and called ``build`` at
the module's end. The loop stays as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ask.attacks.linf import linf_ascent, random_start
from ask.attacks.pgd import pgd_loss
from ask.config.training import METHOD_HOMES, ModelSpec, TrainingSpec
from ask.graphs import cuda_graph
from ask.models.networks import Network
from ask.training.images import ResidentImages

Function = Callable[..., Tensor]
"""One tensor from tensors, and from nothing else that changes from step to step but weights changed in place."""
Crafting = Callable[[str, Function, *tuple[Tensor, ...]], Tensor]
"""Calls a step's function: ``function(*inputs)``, detached; a name stands for the same function in every step."""


def as_it_comes(name: str, function: Function, *inputs: Tensor) -> Tensor:  # noqa: ARG001  # a crafting's arguments
    """Kernel by kernel, on any device (a :data:`Crafting`)."""
    return function(*inputs).detach()


class Replayed:
    """Crafting that is recorded at its first call for inputs of some shapes, and replayed at later ones.

    At batch 128 a ten-step ascent launches over a thousand kernels, and launching takes longer than they do. A CUDA
    graph holds them all and is launched once.

    Args:
        record: makes of a procedure another one that repeats its kernels on the same memory.
    """

    def __init__(self, record: Callable[[Callable[[], None]], Callable[[], None]] = cuda_graph) -> None:
        self.record = record
        self._made: dict[object, tuple[list[Tensor], list[Tensor], Callable[[], None]]] = {}

    def __call__(self, name: str, function: Function, *inputs: Tensor) -> Tensor:
        """As :data:`Crafting`."""
        key = (name, *((x.shape, x.dtype, x.stride(), x.device) for x in inputs))
        if key not in self._made:
            held = [x.detach().clone() for x in inputs]
            found: list[Tensor] = []

            def run() -> None:
                found[:] = [function(*held).detach()]

            self._made[key] = held, found, self.record(run)
        held, found, replay = self._made[key]
        for into, x in zip(held, inputs, strict=True):
            into.copy_(x)
        replay()
        return found[0].clone()  # the next replay writes there


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


Base = Callable[[Network, Batch, Sequence[str]], BaseOutput]
"""Loss of a batch, with features of the adversarial images at the layers asked for; leaves the network in training mode
and changes nothing of it but batch-norm statistics."""


class Regulariser(Protocol):
    """A scalar term, weighted, to add to the base's loss."""

    layers: Sequence[str]
    """Layers whose features it reads from the base's own pass; empty if it makes its own."""
    state: dict[str, Tensor]
    """Tensors that its calls change in place; checkpoints keep them."""

    def __call__(self, network: Network, batch: Batch, output: BaseOutput) -> Tensor:
        """The term, times its weight; 0-d, with gradient."""
        ...


class AdversarialTraining:
    """Cross-entropy on PGD examples, crafted in evaluation mode from a random start (Madry et al., 2018)."""

    def __init__(self, training: TrainingSpec) -> None:
        self.eps, self.step_size, self.steps = training.eps / 255, training.step_size / 255, training.steps

    def craft(self, batch: Batch, images: Tensor, labels: Tensor) -> Tensor:
        """Adversarial copies of images (batch, channels, side, side) in [0, 1], without gradient."""

        def climb(images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
            loss = pgd_loss(batch.target, labels)
            return linf_ascent(loss, images, eps=self.eps, step_size=self.step_size, steps=self.steps, start=start)

        return batch.crafting("pgd", climb, images, labels, random_start(images, self.eps, batch.generator))

    def __call__(self, network: Network, batch: Batch, layers: Sequence[str]) -> BaseOutput:
        """See :data:`Base`."""
        adversarial = self.craft(batch, batch.images, batch.labels)
        logits, features = network.forward_with_features(adversarial, layers)
        loss = F.cross_entropy(logits, batch.labels)
        correct = (logits.detach().argmax(1) == batch.labels).sum()
        return BaseOutput(loss=loss, correct=correct, adversarial=adversarial, features=features)


def make_method(method: ModelSpec, training: TrainingSpec) -> tuple[Base, Regulariser | None]:
    """The base and regulariser that ``method`` names (of weight 0: none); raises ValueError for base ``none``."""

    def own(part: str) -> Any:
        return import_module(METHOD_HOMES[part]).build(getattr(method, part), training)

    if method.base == "none":
        raise ValueError(f"{method.label}: base 'none' trains no network; choose from at, trades")
    base: Base = own(method.base) if method.base in METHOD_HOMES else AdversarialTraining(training)
    options = method.snn or method.ask
    return base, own(method.regulariser) if options and options.weight else None
