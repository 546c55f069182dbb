"""A pretended CUDA device for CPU builds of torch: real values, CUDA's rules.

Within ``with pretend_cuda() as device:`` the name ``cuda`` works. A tensor there wraps one on the CPU, which holds its
values, so that code that depends on data (a top-k, near ties, a loss that diverges) takes the way that it takes on a
card. Every operator is checked against what a card would refuse (:mod:`pretend_cuda.rules`), and CUDA graphs run
nothing until they are replayed (:mod:`pretend_cuda.graphs`). What is refused raises :class:`Refused`.

``pytest --pretend-cuda`` runs the tests marked ``gpu`` on it. It does not see: what cuDNN and cuBLAS compute beyond the
precision that they read (tf32) and write (bf16), operators without a CUDA kernel, several streams at once, memory that
graphs share, how much memory there is, and speed.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch

from pretend_cuda import driver
from pretend_cuda.device import HERE, Device, Generator, Refused, state
from pretend_cuda.graphs import Graph, capture
from pretend_cuda.tensors import Names, Operators

__all__ = ["HERE", "Device", "Refused", "missing", "pretend_cuda"]


def missing() -> str:
    """Why there can be no pretended device here; empty where there can be one."""
    if torch.version.cuda or torch.version.hip or torch.cuda.is_available():
        return "this torch is built for GPUs, and a CPU build can pretend to have one"
    return "" if shutil.which("g++") else "a pretended CUDA device needs g++"


class Stream:
    """All streams are one: work is done in the order in which it is asked for."""

    def wait_stream(self, _other: object) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """The host waits."""
        state().wait("Stream.synchronize")


def _replacements() -> dict[str, Callable[..., Any]]:
    """Functions of ``torch.cuda`` that ask the driver, by name."""
    device, stream = state(), Stream()

    def known() -> bool:
        device.initialise()
        return True

    def seed(_seed: int) -> None:
        device.not_in_capture("seeding a generator")

    def debug(mode: int | str) -> None:
        device.sync_mode = {"default": 0, "warn": 1, "error": 2}.get(str(mode), mode)  # type: ignore[assignment]

    return {
        "is_available": known,
        "init": device.initialise,
        "_lazy_init": device.initialise,
        "_lazy_call": lambda _call, **_: None,
        "is_initialized": lambda: device.process is not None,
        "_is_in_bad_fork": device.in_fork,
        "device_count": lambda: 1,
        "current_device": lambda: known() - 1,
        "get_device_name": lambda *_: "pretended GPU",
        "synchronize": lambda *_: device.not_in_capture("synchronize"),
        "empty_cache": lambda: None,
        "is_current_stream_capturing": lambda: device.capture is not None,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "mem_get_info": lambda *_: (2**36, 2**36),
        "reset_peak_memory_stats": lambda *_: None,
        "is_bf16_supported": lambda *_, **__: True,
        "manual_seed": seed,
        "manual_seed_all": seed,
        "get_rng_state": lambda *_: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
        "set_sync_debug_mode": debug,
        "get_sync_debug_mode": lambda: device.sync_mode,
        "Stream": lambda *_, **__: Stream(),
        "current_stream": lambda *_: stream,
        "stream": lambda _stream: nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
    }


@contextmanager
def pretend_cuda() -> Iterator[Device]:
    """Let torch have a GPU, in this process and thread, as long as the block lasts; yields what the device has seen."""
    import torch._dynamo  # it looks functions up by identity, so it comes before they are replaced

    reason = missing()
    if reason:
        raise Refused(reason)
    with ExitStack() as stack:
        stack.enter_context(driver.installed())
        device = stack.enter_context(Device.fresh())
        for name, function in _replacements().items():
            stack.enter_context(patch.object(torch.cuda, name, function))
            if hasattr(torch.cuda.random, name):
                stack.enter_context(patch.object(torch.cuda.random, name, function))
        stack.enter_context(patch.object(torch, "Generator", Generator))
        # A module's parameters are exchanged by .to(), for a CPU tensor cannot take a device tensor's place.
        future = torch.__future__
        stack.callback(
            future.set_overwrite_module_params_on_conversion, future.get_overwrite_module_params_on_conversion()
        )
        future.set_overwrite_module_params_on_conversion(True)
        # torch.tensor(..., device="cuda") is made on the CPU first, as on a card.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        # Modes belong to a thread: gradients are computed in this one.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(Operators())
        stack.enter_context(Names())
        yield device
