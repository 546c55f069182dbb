"""One clear error for each kind of bad input to an attack."""

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)
"""Types of images that are too coarse for a perturbation: attacks keep theirs in float32."""


def checked(images: Tensor, labels: Tensor, home: torch.device | None, what: str) -> tuple[Tensor, Tensor]:
    """Images and labels fit for an attack: :func:`plain` ones.

    Raises ValueError unless ``images`` is a non-empty float tensor with finite values in [0, 1], and unless both are
    torch tensors on the device ``home`` of ``what`` (None: on the same one), which comes first, for what follows reads
    values.
    """
    for name, given in (("images", images), ("labels", labels)):
        if not isinstance(given, Tensor):
            raise ValueError(f"{name} must be a torch tensor, got {type(given).__name__}; torch.as_tensor()?")
    if home is None:
        home, what = images.device, "images"
    for name, given in (("images", images), ("labels", labels)):
        if given.device != home:
            raise ValueError(f"{name} are on {given.device}, {what} on {home}; move one with .to()")
    if images.dtype not in (*HALF, torch.float32, torch.float64) or images.ndim < 2 or not len(images):
        raise ValueError(
            f"images must be a non-empty float tensor (batch, ...), got {images.dtype} of shape {tuple(images.shape)}"
        )
    low, high = torch.aminmax(images)
    if not (low >= 0 and high <= 1):  # NaN fails both comparisons
        raise ValueError(f"images must be finite and in [0, 1], got values from {low:g} to {high:g}; divide by 255?")
    return plain(images), plain(labels)


def plain(tensor: Tensor) -> Tensor:
    """The tensor apart from the caller's graph; a copy of one made in inference mode, of which no gradient is taken."""
    tensor = tensor.detach()
    return tensor.clone() if tensor.is_inference() else tensor


def rounded(found: Tensor, images: Tensor, eps: float) -> Tensor:
    """Images ``found`` within ``eps`` of ``images`` in the type of these, and still within.

    Where rounding leads out of the ball, the next number towards ``images`` is taken, which lies in it.
    """
    if found.dtype == images.dtype:
        return found
    near = found.to(images.dtype).abs()  # no -0, whose bits do not follow the others'
    outside = (near.double() - images.double()).abs() > eps
    # The bits of numbers from 0 to 1 are in the numbers' order; torch.nextafter does not know float16.
    step = torch.where(outside, (images - near).sign(), 0).to(torch.int16)
    return (near.view(torch.int16) + step).view(images.dtype)


def positions(labels: Tensor, batch: int, classes: Tensor) -> Tensor:
    """Positions in ``classes``, ascending (classes,), of labels (batch,), int64; raises ValueError for other labels."""
    if labels.dtype != torch.int64 or labels.shape != (batch,):
        raise ValueError(f"labels must be int64 of shape ({batch},), got {labels.dtype} of shape {tuple(labels.shape)}")
    found = torch.searchsorted(classes, labels.contiguous()).clamp_(max=len(classes) - 1)
    strange = labels[classes[found] != labels]
    if len(strange):
        known = ", ".join(map(str, classes[:10].tolist())) + (", ..." if len(classes) > 10 else "")
        raise ValueError(
            f"label {int(strange[0])} was not among the labels of the references, {known}; give labels as to fit"
        )
    return found


def check_labels(labels: Tensor, batch: int, classes: int) -> None:
    """Raises ValueError unless ``labels`` is an int64 tensor (batch,) with values below ``classes``."""
    if labels.dtype != torch.int64 or labels.shape != (batch,):
        raise ValueError(f"labels must be int64 of shape ({batch},), got {labels.dtype} of shape {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
