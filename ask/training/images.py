"""Training images: the whole set on the device as uint8, cropped and flipped there a batch at once; a held-out part."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ask.config.training import Augmentation
from ask.seeds import derive_seed

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64]]
"""Images (images, channels, side, side) and their labels (images,)."""


def seeded(device: torch.device, *parts: object) -> torch.Generator:
    """A fresh generator on ``device`` for the purpose that ``parts`` name.

    Every draw of a training run has a seed of its own, so that resuming needs no generator's state.
    """
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def to_unit(images: Tensor) -> Tensor:
    """Float images in [0, 1] of uint8 ones."""
    return images.float().div_(255)


def augment(images: Tensor, kind: Augmentation, generator: torch.Generator, pad: int | None = None) -> Tensor:
    """Shift each image by up to ``pad`` pixels and mirror every other one, at random.

    Equal in distribution to torchvision's ``RandomCrop(side, padding=pad)`` (zero padding) followed by
    ``RandomHorizontalFlip`` (``crop-flip`` only), but one gather for the batch.

    Args:
        images: (batch, channels, side, side), any type.
        generator: on the device of ``images``.
        pad: pixels; None: an eighth of the side.

    Returns:
        Images of the same shape and type, in channels_last order.
    """
    if kind == "none":
        return images.contiguous(memory_format=torch.channels_last)
    batch, side, device = len(images), images.shape[-1], images.device
    margin = side // 8 if pad is None else pad
    top, left = torch.randint(0, 2 * margin + 1, (2, batch, 1), generator=generator, device=device)
    rows = columns = torch.arange(side, device=device).expand(batch, side)
    if kind == "crop-flip":
        flip = torch.rand((batch, 1), generator=generator, device=device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    rows, columns = rows + top, columns + left
    which = torch.arange(batch, device=device)
    padded = F.pad(images, (margin,) * 4)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class ResidentImages:
    """A data set that lives on the device: batches cost one gather, no loader and no copy from the host."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        *,
        device: torch.device,
        kind: Augmentation = "none",
        pad: int | None = None,
    ) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        self.labels = torch.from_numpy(np.ascontiguousarray(labels)).to(device)
        self.kind, self.pad = kind, pad
        self._by_class = torch.argsort(self.labels, stable=True)
        self._counts = torch.bincount(self.labels)
        self._starts = self._counts.cumsum(0) - self._counts

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented images (batch, channels, side, side) in [0, 1] and labels (batch,) of ``indices``."""
        return to_unit(augment(self.images[indices], self.kind, generator, self.pad)), self.labels[indices]

    def references(self, per_class: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``per_class`` augmented images of each class drawn with replacement, in class order, with their labels.

        The reference batch of a regulariser such as ASK's (paper, eq. 6 and Algorithm 2).
        """
        share = torch.rand((len(self._counts), per_class), generator=generator, device=self.labels.device)
        positions = self._starts[:, None] + (share * self._counts[:, None]).long()
        return self.draw(self._by_class[positions.flatten()], generator)


def split_holdout(labels: NDArray[np.int64], holdout: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices kept for training and ``holdout`` class-balanced indices left out, both ascending.

    Where ``holdout`` is no multiple of the class count, the first classes give one image more.

    Raises:
        ValueError: a class would have no image left for training.
    """
    classes = int(labels.max()) + 1
    generator = np.random.default_rng(seed)
    out: list[NDArray[np.int64]] = []
    for label in range(classes):
        members = np.flatnonzero(labels == label)
        wanted = holdout // classes + (label < holdout % classes)
        if wanted >= len(members):
            raise ValueError(
                f"holdout={holdout} takes {wanted} of the {len(members)} training images of class {label} "
                "and leaves none to train on: lower training.holdout, or 0 to keep the last epoch"
            )
        out.append(generator.choice(members, wanted, replace=False))
    held = np.sort(np.concatenate(out)).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels)), held), held
