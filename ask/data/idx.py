"""IDX files, the format of MNIST and Fashion-MNIST."""

import math
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .files import open_content

_UNSIGNED_BYTE = 0x08
_LARGEST = 1 << 30


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzip-compressed or not.

    Args:
        path: The file.
        dims: Expected number of dimensions: 1 for labels, 3 for images.

    Returns:
        uint8 array of ``dims`` dimensions.

    Raises:
        DataError: the magic number, the dimensions or the length are not those of such a file.
    """
    with open_content(path) as content:
        magic, head = bytes((0, 0, _UNSIGNED_BYTE, dims)), content.read(4)
        if head != magic:
            raise DataError(
                f"{path}: not an IDX file of unsigned bytes with {dims} dimension(s): it starts with "
                f"{head.hex() or 'nothing'}, expected {magic.hex()}; get the publisher's file"
            )
        sizes = content.read(4 * dims)
        if len(sizes) < 4 * dims:
            raise DataError(f"{path}: ends inside its header; delete it and get it anew")
        shape = struct.unpack(f">{dims}I", sizes)
        length = math.prod(shape)
        if length > _LARGEST:
            raise DataError(
                f"{path}: announces {length} bytes, more than the {_LARGEST} allowed; get the publisher's file"
            )
        # One byte more than announced tells a file that is too long, and nothing longer is ever held.
        data = content.read(length + 1)
    if len(data) != length:
        found = f"only {len(data)}" if len(data) < length else "more"
        raise DataError(
            f"{path}: {found} bytes of data, expected {length} for shape {shape}; delete it and get it anew"
        )
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)
