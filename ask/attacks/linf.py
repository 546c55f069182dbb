"""The ascent loop that every l-infinity attack here shares (paper, eq. 5 and Algorithm 1).

Algorithm 1 as printed never updates delta and returns the clean image; what stands here is what
eq. (5) says: a sign step, then projection onto the eps-ball around the clean image and onto [0, 1].
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor], Tensor]
"""Maps images (batch, channels, height, width) to one loss an image, (batch,)."""


Step = Callable[[Tensor, Tensor], Tensor]
"""Next images from the current ones and their gradient, within the box that it was made for."""
StepRule = Callable[[Tensor, Tensor, Tensor], Step]
"""Makes the steps of one ascent from its box (lowest images, highest images) and the images that it starts from."""


def random_start(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Uniform noise in [-eps, eps] of the shape, type and device of ``images``, drawn on the generator's device."""
    noise = torch.rand(images.shape, generator=generator, device=generator.device, dtype=images.dtype)
    return noise.to(images.device).mul_(2 * eps).sub_(eps)


def linf_ascent(
    loss_function: LossFunction,
    images: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    rule: StepRule | None = None,
    on_gradient: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Maximise a loss within the l-infinity ball, by projected sign-gradient ascent unless told otherwise.

    Args:
        loss_function: losses (batch,) of images (batch, channels, height, width); images must not
            influence each other's loss, so that summing changes nothing but the scale.
        images: clean images in [0, 1].
        eps: radius in [0, 1] (8 of 255 is ``8 / 255``).
        step_size: step in the same unit.
        steps: gradient steps; the last iterate is returned, without early stopping.
        start: perturbation to start from, as ``images``; overrides ``generator``.
        generator: draws the uniform random start; with neither, the ascent starts at ``images``.
        rule: other steps, e.g. :func:`box_steps`; ``step_size`` then has no say.
        on_gradient: called with each step's gradient, for diagnostics.

    Returns:
        Adversarial images, detached, on the device and of the type of ``images``.
    """
    low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
    if start is None and generator is not None:
        start = random_start(images, eps, generator)
    current = images.clone() if start is None else torch.clamp(images + start, low, high)
    step = (rule or sign_steps(step_size))(low, high, current)
    for _ in range(steps):
        current.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss_function(current).sum(), current)
        if on_gradient is not None:
            on_gradient(gradient)
        current = step(current.detach(), gradient)
    return current


def sign_steps(step_size: float) -> StepRule:
    """Steps of one length along the gradient's sign, then projection (Madry et al., 2018)."""

    def rule(low: Tensor, high: Tensor, start: Tensor) -> Step:  # noqa: ARG001  # every rule gets it
        # Clipping to the ball and to [0, 1] in either order is clipping to their intersection.
        return lambda current, gradient: torch.clamp(current.add_(gradient.sign(), alpha=step_size), low, high)

    return rule


def box_steps(optimizer: Literal["adam", "rmsprop"], learning_rate: float) -> StepRule:
    """Steps of an optimiser on w, images being middle + half width * tanh(w) of the box (Carlini and Wagner, 2017)."""

    def rule(low: Tensor, high: Tensor, start: Tensor) -> Step:
        half, middle = (high - low) / 2, (high + low) / 2
        # At the very edge tanh is flat, and w infinite.
        w = ((start - middle) / half).clamp_(-_EDGE, _EDGE).atanh_()
        # Gradients of an image's loss are small beside the usual eps of 1e-8, which would brake the first steps.
        make = torch.optim.Adam if optimizer == "adam" else torch.optim.RMSprop
        update = make([w], lr=learning_rate, eps=1e-12, maximize=True)

        def step(current: Tensor, gradient: Tensor) -> Tensor:  # noqa: ARG001  # w is what moves
            w.grad = gradient * half * (1 - w.tanh().square())
            update.step()
            return torch.clamp(torch.addcmul(middle, half, w.tanh()), low, high)

        return step

    return rule


_EDGE = 0.999


def ascend_in_batches(
    make_loss: Callable[[slice], LossFunction],
    images: Tensor,
    *,
    batch_size: int,
    eps: float,
    step_size: float,
    steps: int,
    generator: torch.Generator,
    rule: StepRule | None = None,
    on_gradient: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """:func:`linf_ascent` of many images, part by part, from random starts.

    Args:
        make_loss: loss function of a part of the images.
        batch_size: images a part; the starts are drawn for all images at once, so it changes nothing but memory.

    The rest as in :func:`linf_ascent`.
    """
    start = random_start(images, eps, generator)
    result = torch.empty_like(images)
    for first in range(0, len(images), batch_size):
        part = slice(first, first + batch_size)
        result[part] = linf_ascent(
            make_loss(part),
            images[part],
            eps=eps,
            step_size=step_size,
            steps=steps,
            start=start[part],
            rule=rule,
            on_gradient=on_gradient,
        )
    return result


def fitting_batch(images: Tensor, a_image: int) -> int:
    """Images attacked at a time when each holds ``a_image`` bytes of references: within 256 MiB, or a CPU's cache.

    On a GPU what a network stores for the backward pass counts too, which grows with the image: 2500 images of side 32
    take some 10 GiB on a full-width VGG16.
    """
    cpu = images.device.type == "cpu"
    budget, most = (16, 250) if cpu else (256, 2500 * _SMALL // max(_SMALL, images.shape[1:].numel()))
    return max(16, min(most, budget * 2**20 // max(a_image, 1)))


_SMALL = 3 * 32 * 32
"""Values of an image of which a GPU takes the most at a time."""


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without parameter gradients, and everything as it was afterwards.

    Weight gradients would cost a third of a step; a changed mode would pollute batch-norm statistics.
    """
    modes = [(m, m.training) for m in module.modules()]
    flags = [(p, p.requires_grad) for p in module.parameters()]
    try:
        module.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
