"""Decoding of image files."""

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .archives import Member
from .errors import DataError
from .splits import Split, resize, to_array
from .trees import Tree

THREADS = 2
"""Pillow decodes outside Python's lock; two threads keep a small machine usable."""
_BLOCK = 1024
_LARGEST = 64_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
# What Pillow raises on damaged files; UnidentifiedImageError and truncation are OSErrors.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


@dataclass(frozen=True)
class _Head:
    mode: str
    size: tuple[int, int]


def read_images(tree: Tree, side: int | None) -> dict[str, Split]:
    """Decode a tree of image files: grey if all of them are, else RGB; transparency is dropped.

    Args:
        tree: The files.
        side: Pixels to which every image is resized, aspect not kept; None: all must have the same size.

    Raises:
        DataError: an image is damaged, too large, of an unknown format or depth, or, with no ``side``, differs in size.
    """
    members = [member for files in tree.members.values() for member in files]
    with ThreadPoolExecutor(THREADS) as pool:
        heads = [
            head
            for start in range(0, len(members), _BLOCK)
            for head in pool.map(_head, members[start : start + _BLOCK])
        ]
    if side is None:
        _check_sizes(members, heads)
    mode = "L" if all(head.mode in ("1", "L") for head in heads) else "RGB"
    return {
        split: Split(np.asarray(tree.labels[split], dtype=np.int64), _Blocks(files, mode, side))
        for split, files in tree.members.items()
    }


class _Blocks:
    """Decodes files block by block, anew at each iteration."""

    def __init__(self, members: list[Member], mode: str, side: int | None) -> None:
        self.members, self.mode, self.side = members, mode, side

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(self.members), _BLOCK):
                yield np.stack(list(pool.map(self._decode, self.members[start : start + _BLOCK])))

    def _decode(self, member: Member) -> NDArray[np.uint8]:
        data = member.read()
        try:
            with Image.open(BytesIO(data), formats=_FORMATS) as image:
                return to_array(resize(image.convert(self.mode), self.side))
        except _DAMAGE as error:
            raise _damaged(member, error) from error


def _head(member: Member) -> _Head:
    data = member.read()
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            head = _Head(image.mode, image.size)
    except _DAMAGE as error:
        raise _damaged(member, error) from error
    if head.size[0] * head.size[1] > _LARGEST:
        raise DataError(f"{member}: {head.size[0]}x{head.size[1]} pixels, at most {_LARGEST} are read; make it smaller")
    if head.mode not in _MODES:
        raise DataError(f"{member}: pixel format {head.mode}, expected 8 bits a channel; convert it")
    return head


def _damaged(member: Member, error: Exception) -> DataError:
    return DataError(f"{member}: not a readable image ({error}), expected {', '.join(_FORMATS)}; replace or remove it")


def _check_sizes(members: list[Member], heads: list[_Head]) -> None:
    for member, head in zip(members, heads, strict=True):
        if head.size != heads[0].size:
            first, other = ("x".join(map(str, size)) for size in (heads[0].size, head.size))
            raise DataError(
                f"images differ in size: {members[0]} has {first} pixels (width x height), {member} has {other}; "
                f"set `image_size` of the data set, to which all are resized"
            )
