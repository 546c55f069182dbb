"""One clear error for each kind of bad input to an attack."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def check_linf(eps: float, step_size: float, steps: int) -> None:
    """Raises ValueError for a radius or step outside (0, 1] or fewer than one step."""
    for name, value in (("eps", eps), ("step_size", step_size)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value} is outside (0, 1]; pixels are in [0, 1], so write 8 of 255 as 8 / 255")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")


def check_layers(layers: Sequence[str], references: Mapping[str, object]) -> None:
    """Raises ValueError unless there are attacked layers, each with references."""
    if not layers:
        raise ValueError("layers is empty; name at least one attacked layer")
    missing = [layer for layer in layers if layer not in references]
    if missing:
        raise ValueError(f"no references for attacked layers {missing}; given: {sorted(references)}")


def check_devices(images: Tensor, labels: Tensor, home: torch.device | None, what: str) -> None:
    """Raises ValueError unless both are torch tensors on the device ``home`` of ``what``; None: on the same one.

    Called before the other checks, which read values.
    """
    for name, given in (("images", images), ("labels", labels)):
        _check_is_tensor(name, given)
    if home is None:
        home, what = images.device, "images"
    for name, tensor in (("images", images), ("labels", labels)):
        if tensor.device != home:
            raise ValueError(f"{name} are on {tensor.device}, {what} on {home}; move one with .to()")


def _check_is_tensor(name: str, given: object) -> None:
    if not isinstance(given, Tensor):
        raise ValueError(f"{name} must be a torch tensor, got {type(given).__name__}; torch.as_tensor()?")


def check_images(images: Tensor) -> None:
    """Raises ValueError unless ``images`` is a non-empty float tensor with finite values in [0, 1]."""
    if not images.is_floating_point() or images.ndim < 2 or not len(images):
        raise ValueError(
            f"images must be a non-empty float tensor (batch, ...), got {images.dtype} of shape {tuple(images.shape)}"
        )
    low, high = torch.aminmax(images)
    if not (low >= 0 and high <= 1):  # NaN fails both comparisons
        raise ValueError(f"images must be finite and in [0, 1], got values from {low:g} to {high:g}; divide by 255?")


def check_labels(labels: Tensor, batch: int, classes: int | None = None) -> None:
    """Raises ValueError unless ``labels`` is an int64 tensor (batch,) with values below ``classes``."""
    if labels.dtype != torch.int64 or labels.shape != (batch,):
        raise ValueError(f"labels must be int64 of shape ({batch},), got {labels.dtype} of shape {tuple(labels.shape)}")
    if classes is not None and (labels.min() < 0 or labels.max() >= classes):
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
