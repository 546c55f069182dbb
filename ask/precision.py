"""Precision of arithmetic, set in one place.

Matrix products (searches, losses) multiply in IEEE float32, on every device. A GPU's convolutions read float32 factors
as tf32, with ten bits of mantissa, as cuDNN does unless told otherwise. The passes of a network that a training or an
attack makes on its way may be in bfloat16 (:func:`network_passes`), a half of the arithmetic on processors made for it:
weights, features, losses, searches and votes stay float32, and so do the passes that classify.
"""

import ctypes
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ask import files
from ask.config.base import Precision
from ask.hardware import hardware, machines, settled_in, timed

Passes = Literal["float32", "bfloat16"]
"""What network passes compute in."""
GAIN = 1.2
"""How many times faster bfloat16 must be for ``auto`` to take it."""
_backends: Any = torch.backends  # torch's stubs lack what is set here
_passes: ContextVar[Passes] = ContextVar("passes", default="float32")
CONVOLUTIONS = "tf32"
"""How a GPU's convolutions read float32: ``tf32`` or ``ieee``."""


def settle(convolutions: str = CONVOLUTIONS) -> None:
    """Set the precisions for this process (a GPU's convolutions: ``ieee`` or ``tf32``), whatever the environment says.

    ``TORCH_ALLOW_TF32_CUBLAS_OVERRIDE`` turns products on a GPU to tf32, and neighbours found so are not the nearest.
    """
    # The older function sets the flags of all backends, old and new ones; where these contradict each other, products
    # on a GPU are errors.
    torch.set_float32_matmul_precision("highest")
    # Both alike, for torch's older flag covers both and raises where they differ.
    for operator in (_backends.cudnn.conv, _backends.cudnn.rnn):
        operator.fp32_precision = convolutions
    _backends.mkldnn.conv.fp32_precision = "ieee"


def in_force(device: torch.device) -> dict[str, str]:
    """How matrix products and convolutions on a device read float32 factors now: ``ieee``, ``tf32`` or ``bf16``."""
    gpu = device.type == "cuda"
    products, convolutions = (
        (_backends.cuda.matmul, _backends.cudnn.conv) if gpu else (_backends.mkldnn.matmul, _backends.mkldnn.conv)
    )
    found = {"products": products.fp32_precision, "convolutions": convolutions.fp32_precision}
    return {name: "ieee" if value == "none" else value for name, value in found.items()}


@contextmanager
def products_read_as(precision: str) -> Iterator[None]:
    """Matrix products read float32 factors so as long as the block lasts, whatever is set otherwise, autocast included.

    ``ieee`` is meant for all devices, ``tf32`` for a GPU; products on a CPU are in ``ieee`` even then.
    """
    leaves = _backends.cuda.matmul, _backends.mkldnn.matmul
    before = [leaf.fp32_precision for leaf in leaves]
    try:
        general = torch.get_float32_matmul_precision()
    except RuntimeError:  # older and newer flags contradict each other; then the newer ones hold
        general = "highest"
    torch.set_float32_matmul_precision("highest" if precision == "ieee" else "high")
    _backends.mkldnn.matmul.fp32_precision = "ieee"
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(general)
        for leaf, value in zip(leaves, before, strict=True):
            leaf.fp32_precision = value


@contextmanager
def tried_kernels() -> Iterator[None]:
    """cuDNN tries its kernels for each new shape and takes the fastest, as long as the block lasts."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True  # cudnn.flags() would set, and read, the older flags of precision too
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def undisturbed(device: torch.device | str | None = None) -> Iterator[None]:
    """What attacks and searches compute in: no inference mode around it, and no denormal numbers on a CPU.

    A softmax over classes may be full of numbers below float32's normal range, on which CPUs can be many times slower.
    They count as 0 as long as the block lasts; afterwards each of torch's threads has the setting that it had. Where
    the caller has them count as 0 already, nothing is set.
    """
    with torch.inference_mode(False):
        if torch.device(device or "cpu").type != "cpu" or _flushes():
            yield
            return
        before: dict[int, bool] = {}

        def begin() -> None:
            before[threading.get_native_id()] = _flushes()
            torch.set_flush_denormal(True)

        _in_all_threads(begin)
        try:
            yield
        finally:
            # Threads that have begun since have inherited what this one was set to.
            _in_all_threads(lambda: torch.set_flush_denormal(before.get(threading.get_native_id(), False)))


def _flushes() -> bool:
    """Whether denormal numbers count as 0 in this thread."""
    return sys.float_info.min * 0.5 == 0


def _in_all_threads(act: Callable[[], object]) -> None:
    """Run it in this thread and in those of GNU's OpenMP, each of which has settings of its own."""
    if (parallel := _gnu_parallel()) is None or torch.get_num_threads() == 1:
        act()
    else:
        parallel(_Function(lambda _: act()), None, torch.get_num_threads(), 0)


_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _gnu_parallel() -> Any:
    """GNU OpenMP's entry into a parallel region, of the library that torch itself uses; None where it uses another."""
    try:
        return ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so")).GOMP_parallel
    except (OSError, AttributeError):
        return None


@contextmanager
def network_passes(precision: Passes) -> Iterator[None]:
    """Passes of :class:`ask.models.networks.Network` compute in this precision as long as the block lasts."""
    token = _passes.set(precision)
    try:
        yield
    finally:
        _passes.reset(token)


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """What a network's pass runs in: bfloat16 factors where :func:`network_passes` says so, or what the caller set."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if _passes.get() == "bfloat16" else nullcontext()


def trainable(network: nn.Module, image: torch.Tensor) -> bool:
    """Whether weight gradients of passes in bfloat16 can be trusted, for images like one (channels, side, side).

    On a CPU they cannot where a convolution takes strides longer than its input: torch 2.13 (oneDNN 3.12) then reads
    memory that nobody wrote, and finds another gradient each time. A ResNet18 does so at side 16.
    """
    if image.device.type != "cpu":
        return True
    too_long: list[bool] = []

    def see(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        too_long.append(any(s > n for s, n in zip(layer.stride, inputs[0].shape[2:], strict=True)))

    hooks = [layer.register_forward_pre_hook(see) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            network.eval()(image[None])
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    return not any(too_long)


def settled(wanted: Precision, device: torch.device, run: Path) -> Passes:
    """The precision of a run's network passes on the way.

    ``auto`` is decided once a run, by the machine that asks first, and kept in ``precision.json`` in its folder: all
    machines that work on it compute alike, and a training goes on in the precision in which it began. Only kinds of
    machine that gain nothing by a run's bfloat16 (many lack it, and are twenty times slower in it) take float32, and
    are noted there.
    """
    if wanted != "auto":
        return wanted
    path, here = run / "precision.json", machines(hardware(device) if device.type == "cuda" else "")
    if not _decided(found := settled_in(run, here), here):
        record = expected(wanted, device)
        with files.locked(path.with_suffix(".lock")):
            if not (found := settled_in(run, here)):
                files.write_json(path, found := record)
            elif not _decided(found, here):
                files.write_json(path, found | {"others": [*found.get("others", ()), record]})
                found = record
        path.with_suffix(".lock").unlink(missing_ok=True)
    precision: Passes = found["precision"]
    return precision


def _decided(found: Mapping[str, Any], here: tuple[str, ...]) -> bool:
    """Whether what is written down settles a machine's precision, too; float32 suits all."""
    return bool(found) and (found["precision"] == "float32" or found["processor"].startswith(here))


def expected(wanted: Precision, device: torch.device) -> dict[str, Any]:
    """What :func:`settled` would write down on this machine."""
    # Floating-point operations a second of a convolution and back to its images.
    rates = once_a_machine("precision", device, _measure, quiet=True)
    found = {name: round(rate / 1e9, 1) for name, rate in rates.items()}
    faster = found["bfloat16"] >= GAIN * found["float32"]
    chosen = ("bfloat16" if faster else "float32") if wanted == "auto" else wanted
    return {"precision": chosen, "processor": hardware(device), "gflops": found, "threads": torch.get_num_threads()}


def once_a_machine(
    name: str, device: torch.device, measure: Callable[[torch.device], Any], *, quiet: bool = False
) -> dict[str, float]:
    """Rates that are measured once a machine and kept in the user's cache under a name.

    With ``quiet``, those of a CPU with other work are not kept: for whoever reads them, and not only compares them.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ask" / f"{name}.json"
    key = f"{hardware(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(cache.read_text(encoding="utf-8"))
    if key not in known:
        known[key] = measure(device)
        busy = quiet and device.type == "cpu" and os.getloadavg()[0] > (os.cpu_count() or 1)
        with suppress(OSError):  # a home folder that cannot be written to
            if not busy:
                files.write_json(cache, known)
    rates: dict[str, float] = known[key]
    return rates


def _measure(device: torch.device) -> dict[Passes, float]:
    """Operations a second by precision: the best of four rounds, of which the first warms up; both take turns."""
    images, channels, side = (512, 256, 32) if device.type == "cuda" else (64, 128, 16)
    block = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
    block.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # stubs lack it
    x = torch.rand((images, channels, side, side), device=device, generator=torch.Generator(device).manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(True)

    def work() -> None:
        torch.autograd.grad(block(block(x)).float().sum(), x)

    best: dict[Passes, float] = {"float32": float("inf"), "bfloat16": float("inf")}
    for _ in range(4):
        for precision in best:
            with network_passes(precision), autocast(device):
                best[precision] = min(best[precision], timed(device, work))
        if best["bfloat16"] > 3 * best["float32"]:
            break  # it lacks it, and would take many seconds
    flop = 2 * 2 * 2 * images * side**2 * channels**2 * 9
    return {precision: flop / seconds for precision, seconds in best.items()}
