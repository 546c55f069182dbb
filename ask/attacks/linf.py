"""The ascent loop that every l-infinity attack here shares (paper, eq. 5 and Algorithm 1).

Algorithm 1 as printed never updates delta and returns the clean image; what stands here is what
eq. (5) says: a sign step, then projection onto the eps-ball around the clean image and onto [0, 1].
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

LossFunction = Callable[[Tensor], Tensor]
"""Maps images (batch, channels, height, width) to one loss an image, (batch,)."""


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
    on_gradient: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Maximise a loss within the l-infinity ball by projected sign-gradient ascent.

    Args:
        loss_function: losses (batch,) of images (batch, channels, height, width); images must not
            influence each other's loss, so that summing changes nothing but the scale.
        images: clean images in [0, 1].
        eps: radius in [0, 1] (8 of 255 is ``8 / 255``).
        step_size: step in the same unit.
        steps: gradient steps; the last iterate is returned, without early stopping.
        start: perturbation to start from, as ``images``; overrides ``generator``.
        generator: draws the uniform random start; with neither, the ascent starts at ``images``.
        on_gradient: called with each step's gradient, for diagnostics.

    Returns:
        Adversarial images, detached, on the device and of the type of ``images``.
    """
    low, high = (images - eps).clamp_(min=0), (images + eps).clamp_(max=1)
    if start is None and generator is not None:
        start = random_start(images, eps, generator)
    current = images.clone() if start is None else torch.clamp(images + start, low, high)
    for _ in range(steps):
        current.requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss_function(current).sum(), current)
        if on_gradient is not None:
            on_gradient(gradient)
        # Clipping to the ball and to [0, 1] in either order is clipping to their intersection.
        current = torch.clamp(current.detach().add_(gradient.sign(), alpha=step_size), low, high)
    return current


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
