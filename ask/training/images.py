"""Training images: the whole set on the device as uint8, and a held-out part of it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ask.seeds import derive_seed
from ask.training.augment import Augmentation, augment


def seeded(device: torch.device, *parts: object) -> torch.Generator:
    """A fresh generator on ``device`` for the purpose that ``parts`` name.

    Every draw of a training run has a seed of its own, so that resuming needs no generator's state.
    """
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def to_unit(images: Tensor) -> Tensor:
    """Float images in [0, 1] of uint8 ones."""
    return images.float().div_(255)


class ResidentImages:
    """A data set that lives on the device: batches cost one gather, no loader and no copy from the host."""

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], *, device: torch.device, kind: Augmentation = "none"
    ) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        self.labels = torch.from_numpy(np.ascontiguousarray(labels)).to(device)
        self.kind = kind
        self._by_class = torch.argsort(self.labels, stable=True)
        self._counts = torch.bincount(self.labels)
        self._starts = self._counts.cumsum(0) - self._counts

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented images (batch, channels, side, side) in [0, 1] and labels (batch,) of ``indices``."""
        return to_unit(augment(self.images[indices], self.kind, generator)), self.labels[indices]

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
