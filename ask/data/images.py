"""Trees of image files, ``<split>/<class>/<file>``, in folders and archives, and resizing."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ask.data.archives import Member, members
from ask.data.errors import DataError
from ask.data.readers import Split

_LAYOUT = "expected <split>/<class>/<file>, with splits `train` and `test` (or `val`)"
_SPLITS = {"train", "test", "val"}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
# What Pillow raises on damaged files; UnidentifiedImageError and truncation are OSErrors.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


def read_images(
    paths: list[Path], side: int | None, classes: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Read trees of image files together, in order of class and file name; grey if all files are, else RGB.

    Hidden files, and files that do not lie in a class folder of a known split, are left out. The splits may lie in one
    folder of their own. Transparency is dropped.

    Args:
        paths: Folders, zips or tar archives.
        side: Pixels to which images will be resized; None: all must have the same size.
        classes: Class folders in order of class number; empty: those of the training images, sorted by name.

    Returns:
        The class folders, and the splits, whose images are decoded (once) as they are iterated.

    Raises:
        DataError: a split is missing, a class is unknown, or an archive or image is damaged or of a wrong kind.
    """
    where = ", ".join(map(str, paths))
    files = [member for path in paths for member in _image_files(path)]
    has_test = any(member.name.startswith("test/") for member in files)
    found: dict[str, tuple[list[Member], NDArray[np.int64]]] = {}
    for split, top in (("train", "train"), ("test", "test" if has_test else "val")):
        inside = [member for member in files if member.name.startswith(f"{top}/")]
        if not inside:
            raise DataError(f"{where}: no images of split {split}; {_LAYOUT}")
        folders = {_folder(member) for member in inside}
        classes = classes or tuple(sorted(folders))
        if unknown := sorted(folders - set(classes)):
            raise DataError(f"{where}: {top}/{unknown[0]} is none of the classes {', '.join(classes)}; remove it")
        numbers = {folder: number for number, folder in enumerate(classes)}
        inside.sort(key=lambda member: (numbers[_folder(member)], member.name))
        found[split] = inside, np.array([numbers[_folder(member)] for member in inside], dtype=np.int64)
    mode = _common_mode(found["train"][0] + found["test"][0], side)
    return classes, {split: Split(_decoded(inside, mode), labels) for split, (inside, labels) in found.items()}


def resize(pixels: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    """Resize an image (C, H, W), C being 1 or 3, to (C, side, side), aspect not kept; None leaves it as it is.

    Enlarging by a whole number repeats pixels; anything else is bilinear, with antialiasing where it shrinks.
    """
    channels, height, width = pixels.shape
    if side is None or (height, width) == (side, side):
        return pixels
    whole = side % width == 0 and side % height == 0
    image = Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
    return _to_array(image.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR))


def _image_files(path: Path) -> Iterator[Member]:
    shown = [member for member in members(path) if not _hidden(member.name)]
    tops = {member.name.partition("/")[0] for member in shown}
    around = f"{tops.pop()}/" if len(tops) == 1 and not tops & _SPLITS else ""
    for member in shown:
        name = member.name.removeprefix(around)
        depth = name.count("/")
        if name.partition("/")[0] not in _SPLITS or depth < 2:
            continue
        if depth > 2:
            raise DataError(f"{member}: lies too deep, {_LAYOUT}; move its images up")
        yield replace(member, name=name)


def _folder(member: Member) -> str:
    return member.name.split("/")[1]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in name.split("/"))


def _common_mode(files: list[Member], side: int | None) -> str:
    """``L`` if all images are grey, else ``RGB``; checks their sizes if they are not going to be resized."""
    modes, first = set(), None
    for member in files:
        with _opened(member) as image:
            modes.add(image.mode)
            first = first or image.size
            if side is None and image.size != first:
                raise DataError(
                    f"images differ in size: {files[0]} has {first} pixels (width, height), {member} has {image.size}; "
                    f"set `image_size` of the data set, to which all are resized"
                )
    return "L" if modes <= {"1", "L"} else "RGB"


def _decoded(files: list[Member], mode: str) -> Iterator[NDArray[np.uint8]]:
    for member in files:
        with _opened(member) as image:
            yield _to_array(image.convert(mode))


@contextmanager
def _opened(member: Member) -> Iterator[Image.Image]:
    data = member.read()
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixel format {image.mode}, expected 8 bits a channel")
            yield image
    except _DAMAGE as error:
        raise DataError(
            f"{member}: not a readable image ({error}), expected {', '.join(_FORMATS)}; replace or remove it"
        ) from error


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of an ``L`` or ``RGB`` image, uint8 (C, H, W)."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
