"""One clear error for each kind of bad input to an attack."""

import torch
from torch import Tensor


def check_linf(eps: float, step_size: float, steps: int) -> None:
    """Raises ValueError for a radius or step outside (0, 1] or fewer than one step."""
    for name, value in (("eps", eps), ("step_size", step_size)):
        if not 0 < value <= 1:
            raise ValueError(f"{name}={value} is outside (0, 1]; pixels are in [0, 1], so write 8 of 255 as 8 / 255")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")


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
