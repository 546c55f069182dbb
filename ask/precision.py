"""Precision of float32 arithmetic, set in one place.

Matrix products (searches, losses, fully connected layers) multiply in IEEE float32, on every device. A GPU's
convolutions read float32 factors as tf32, with ten bits of mantissa, as cuDNN does unless told otherwise; training
passes are in bf16 there (:func:`ask.training.methods.training_precision`). A CPU computes all in IEEE float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_backends: Any = torch.backends  # torch's stubs lack what is set here
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
    """Matrix products read float32 factors so as long as the block lasts, whatever is set otherwise.

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
