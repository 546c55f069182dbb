"""Random crop and flip of a whole batch at once, on the batch's device."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Augmentation = Literal["crop-flip", "crop", "none"]


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its side (4 pixels of 32) and mirror every other one, at random.

    Equal in distribution to torchvision's ``RandomCrop(side, padding=side // 8)`` (zero padding) followed by
    ``RandomHorizontalFlip`` (``crop-flip`` only), but one gather for the batch.

    Args:
        images: (batch, channels, side, side), any type.
        generator: on the device of ``images``.

    Returns:
        Images of the same shape and type, in channels_last order.
    """
    if kind == "none":
        return images.contiguous(memory_format=torch.channels_last)
    batch, side, device = len(images), images.shape[-1], images.device
    margin = side // 8
    top, left = torch.randint(0, 2 * margin + 1, (2, batch, 1), generator=generator, device=device)
    rows = columns = torch.arange(side, device=device).expand(batch, side)
    if kind == "crop-flip":
        flip = torch.rand((batch, 1), generator=generator, device=device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    rows, columns = rows + top, columns + left
    which = torch.arange(batch, device=device)
    padded = F.pad(images, (margin,) * 4)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
