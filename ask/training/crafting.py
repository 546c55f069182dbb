"""How a training step's adversarial examples are computed: as they come, or replayed as one CUDA graph.

At batch 128 a ten-step ascent launches over a thousand kernels, and launching takes longer than they do. A graph holds
them all and is launched once (:class:`Replayed`).
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ask.graphs import cuda_graph

Function = Callable[..., Tensor]
"""One tensor from tensors, and from nothing else that changes from step to step but weights changed in place."""


class Crafting(Protocol):
    """Calls a step's function."""

    def __call__(self, name: str, function: Function, *inputs: Tensor) -> Tensor:
        """``function(*inputs)``, detached; a name stands for the same function in every step."""


def as_it_comes(name: str, function: Function, *inputs: Tensor) -> Tensor:  # noqa: ARG001  # a protocol
    """Kernel by kernel, on any device."""
    return function(*inputs).detach()


class Replayed:
    """Recorded at its first call for inputs of some shapes, replayed at later ones.

    Args:
        record: makes of a procedure another one that repeats its kernels on the same memory.
    """

    def __init__(self, record: Callable[[Callable[[], None]], Callable[[], None]] = cuda_graph) -> None:
        self.record = record
        self._made: dict[object, tuple[list[Tensor], list[Tensor], Callable[[], None]]] = {}

    def __call__(self, name: str, function: Function, *inputs: Tensor) -> Tensor:
        """As :class:`Crafting`."""
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
