"""Prepared arrays, memory-mapped."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ask.errors import DataError

SPLITS = ("train", "test")


def load(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Open one split, ``"train"`` or ``"test"``, of a folder written by `prepare`.

    Returns images, uint8 (N, C, H, W), and labels, int64 (N,), both read-only and memory-mapped. Raises DataError where
    a file is missing, damaged, or not of that type and shape.
    """
    if split not in SPLITS:
        raise DataError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    images = _open(folder / f"{split}_images.npy", np.uint8, 4)
    labels = _open(folder / f"{split}_labels.npy", np.int64, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {len(images)} {split} images but {len(labels)} labels; "
            f"delete the folder and make it anew with `python -m ask prepare`"
        )
    return images, labels


def _open(path: Path, dtype: type[np.generic], dims: int) -> NDArray[Any]:
    fix = "make it with `python -m ask prepare`"
    if not path.is_file():
        raise DataError(f"{path}: missing; {fix}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{path}: not a readable .npy file ({error}); delete it and {fix}") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise DataError(f"{path}: an archive of arrays, expected one array; delete it and {fix}")
    if array.dtype != dtype or array.ndim != dims or not array.flags.c_contiguous:
        found, expected = f"{array.dtype} of shape {array.shape}", f"C-contiguous {dtype.__name__}"
        raise DataError(f"{path}: holds {found}, expected {expected} with {dims} dimension(s); delete it and {fix}")
    return array
