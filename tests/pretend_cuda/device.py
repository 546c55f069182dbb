"""What the pretended device knows: who uses it, how often the host waited for it, and the capture under way."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch

if TYPE_CHECKING:
    from pretend_cuda.graphs import Recording

HERE = torch.device("cuda", 0)
_current: list["Device"] = []


class Refused(RuntimeError):  # noqa: N818  # named after who raises it, as torch's own
    """A card, its driver or torch's CUDA kernels would have refused this."""


class Device:
    """State of the device between :func:`pretend_cuda`'s begin and end."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        """How often the host waited, by what for."""
        self.launches = 0
        """Operators run."""
        self.sync_mode = 0
        """``torch.cuda.set_sync_debug_mode``: 2 makes each wait an error."""
        self.capture: Recording | None = None
        self.process: int | None = None
        """The process that used the device first."""
        self.generators: set[int] = set()
        """Addresses of the generators that draw here."""
        self.users: dict[int, WeakSet[Any]] = {}
        """Tensors that use a piece of memory, by its address."""

    @classmethod
    @contextmanager
    def fresh(cls) -> Iterator["Device"]:
        """A device that nobody has used, as the one of :func:`state`."""
        _current.append(cls())
        try:
            yield _current[-1]
        finally:
            _current.pop()

    def initialise(self) -> None:
        """The first use of the device in this process; raises Refused in a fork of one that has used it."""
        if self.in_fork():
            raise Refused("Cannot re-initialize CUDA in forked subprocess: start it by 'spawn', or use CUDA only there")
        self.process = os.getpid()

    def in_fork(self) -> bool:
        """Whether a process from which this one was forked has used the device."""
        return self.process not in (None, os.getpid())

    def wait(self, what: str) -> None:
        """The host waits for the device."""
        self.not_in_capture(what)
        self.waits[what] += 1
        if self.sync_mode == 2:
            raise Refused(f"called a synchronizing CUDA operation: {what}")

    def not_in_capture(self, what: str) -> None:
        """Raises Refused while a graph is captured."""
        self.initialise()
        if self.capture is not None:
            raise Refused(f"operation not permitted when stream is capturing: {what}")


def state() -> Device:
    """The device of the innermost :func:`pretend_cuda`."""
    return _current[-1]


class Generator(torch._C.Generator):
    """Stands for ``torch.Generator``, and draws on the CPU for both devices."""

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        """As ``torch.Generator``."""
        made = super().__new__(cls)
        state().generators.discard(made._cdata)  # of one that is gone
        if is_here(device):
            state().not_in_capture("making a generator")
            state().generators.add(made._cdata)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it draws."""
        return HERE if self._cdata in state().generators else torch.device("cpu")


def is_here(device: torch.device | str | None) -> bool:
    """Whether a device is this one."""
    return device is not None and torch.device(device).type == "cuda"


def address(tensor: torch.Tensor) -> int:
    """Of the memory that a CPU tensor uses, its views sharing one."""
    return tensor.untyped_storage()._cdata
