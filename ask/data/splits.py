"""What every reader gives: labels, and images block by block."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class Split:
    """One split of a data set, not yet written."""

    labels: NDArray[np.int64]
    """Class numbers, shape (N,)."""
    blocks: Iterable[NDArray[np.uint8]]
    """Images in order, in blocks of shape (any, C, H, W)."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What `prepare` writes and checks."""

    class_names: tuple[str, ...]
    splits: dict[str, Split]
    """By ``train`` and ``test``."""
    note: str = ""
    """What a result made from this data has to say; may be empty."""


def resize(image: Image.Image, side: int | None) -> Image.Image:
    """Resize an image to ``side`` x ``side`` pixels, aspect not kept; None leaves it as it is.

    Enlarging by a whole number repeats pixels; anything else is bilinear, with antialiasing where it shrinks.
    """
    if side is None or image.size == (side, side):
        return image
    width, height = image.size
    whole = side % width == 0 and side % height == 0
    return image.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR)


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of an ``L`` or ``RGB`` image, uint8 (C, H, W)."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def resize_arrays(
    blocks: Iterable[NDArray[np.uint8]], side: int | None, size: int = 4096
) -> Iterator[NDArray[np.uint8]]:
    """Resize every image of blocks of shape (any, C, H, W), C being 1 or 3, as `resize` does."""
    for block in blocks:
        if side is None or block.shape[2:] == (side, side):
            yield block
            continue
        for start in range(0, len(block), size):
            images = (
                Image.fromarray(
                    pixels.transpose(1, 2, 0).squeeze(axis=2)
                    if len(pixels) == 1
                    else np.ascontiguousarray(pixels.transpose(1, 2, 0))
                )
                for pixels in block[start : start + size]
            )
            yield np.stack([to_array(resize(image, side)) for image in images])
