"""CUDA graphs: what is captured runs at a replay, on the memory of the capture, and not before."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from pretend_cuda.arithmetic import compute
from pretend_cuda.call import Call
from pretend_cuda.device import Refused, address, state

GARBAGE = -(2**31)
"""What whole numbers of a graph hold before its first replay; others hold NaN."""


class Recording:
    """Operators in order, the memory that they make, and the memory from outside that they use."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.own: set[int] = set()
        """Addresses of the memory that the graph itself makes."""
        self.outside: dict[int, str] = {}
        """The operator that first uses a piece of other memory, by address."""
        self.held: list[Tensor] = []
        """Keeps all that memory from being used again for something else."""
        self.content: dict[int, tuple[Tensor, Tensor]] = {}
        """Memory from outside that was written to, and what it held before."""

    def save(self, call: Call) -> None:
        """Keep what an operator is about to overwrite outside of the graph."""
        args, kwargs = call.plain
        for place, argument in enumerate(call.func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            for target in _tensors(args[place] if place < len(args) else kwargs.get(argument.name)):
                if address(target) not in self.own and address(target) not in self.content:
                    memory = torch.empty(0, dtype=target.dtype).set_(target.untyped_storage())
                    self.content[address(target)] = memory, memory.clone()

    def note(self, call: Call, found: Any) -> None:
        """Record an operator that has run, to find out what it makes."""
        args, kwargs = call.plain
        used, results = [tensor.values for tensor in call.ours], _tensors(found)
        for tensor in used:
            if address(tensor) not in self.own:
                self.outside.setdefault(address(tensor), call.name)
        self.own |= {address(tensor) for tensor in results} - {address(tensor) for tensor in used}
        self.held += used + results
        self.steps.append((call.func, args, kwargs, results))

    def undo(self) -> None:
        """A capture runs nothing: outside is as it was, and results hold nothing to be read."""
        for memory, content in self.content.values():
            memory.copy_(content)
        for tensor in (one for *_, results in self.steps for one in results if address(one) in self.own):
            with contextlib.suppress(RuntimeError):  # expanded: its memory is filled by another result
                if tensor.dtype != torch.bool:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else GARBAGE)

    def replay(self) -> None:
        """Run all operators again; raises Refused where a tensor that they use is gone."""
        device = state()
        for where, name in self.outside.items():
            if not device.users.get(where):
                raise Refused(f"a replayed graph's {name} uses memory that has been freed since its capture")
        for func, args, kwargs, results in self.steps:
            device.launches += 1
            for old, new in zip(results, _tensors(compute(func, args, kwargs)), strict=True):
                if address(old) != address(new):
                    old.copy_(new)


class Graph:
    """Stands for ``torch.cuda.CUDAGraph``."""

    def __init__(self, *_: object, **__: object) -> None:
        self.recording = Recording()

    def replay(self) -> None:
        """Launch it."""
        state().not_in_capture("replay")
        with _plainly():
            self.recording.replay()


@contextmanager
def capture(graph: Graph, *_: object, **__: object) -> Iterator[None]:
    """Stands for ``torch.cuda.graph``: captures what the block launches."""
    device = state()
    device.not_in_capture("another capture")
    device.capture = graph.recording
    try:
        yield
    finally:
        device.capture = None
        with _plainly():
            graph.recording.undo()


@contextmanager
def _plainly() -> Iterator[None]:
    """On CPU tensors, out of the way of modes and gradients."""
    with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
        yield


def _tensors(found: Any) -> list[Tensor]:
    return [one for one in tree_leaves(found) if isinstance(one, Tensor)]
