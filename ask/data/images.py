"""Trees of image files, ``<split>/<class>/<file>``, in folders and archives, and resizing."""

import re
import struct
from collections import defaultdict
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ask.data.arrays import DataError
from ask.data.readers import DAMAGE, Member, Split, members

_LAYOUT = "expected <split>/<class>/<file>, with splits `train` and `test` (or `val`)"
_PLACE = re.compile(r"(?P<split>train|test|val)/(?P<class>[^/]+)/[^/]+(?P<deeper>/.*)?")
_HIDDEN = re.compile(r"(^|/)(\.|(__MACOSX|Thumbs\.db|desktop\.ini)(/|$))")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")


def read_images(
    paths: list[Path], side: int | None, classes: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Read trees of image files together, in order of class and file name; grey if all files are, else RGB.

    Hidden files, and files that do not lie in a class folder of a known split, are left out. The splits may lie in one
    folder of their own. Images are as a photo viewer shows them: turned as their EXIF orientation says, and what is
    transparent over white.

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
    tree = _tree(paths)
    files: dict[str, list[Member]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    for split, top in (("train", "train"), ("test", "test" if "test" in tree else "val")):
        if top not in tree:
            raise DataError(f"{where}: no images of split {split}; {_LAYOUT}")
        classes = classes or tuple(sorted(tree[top]))
        if unknown := sorted(tree[top].keys() - set(classes)):
            raise DataError(f"{where}: {top}/{unknown[0]} is none of the classes {', '.join(classes)}; remove it")
        by_class = [sorted(tree[top][name], key=lambda member: member.name) for name in classes]
        files[split] = [member for inside in by_class for member in inside]
        labels[split] = np.repeat(np.arange(len(classes), dtype=np.int64), [len(inside) for inside in by_class])
    mode = _common_mode(files["train"] + files["test"], side)
    images = {split: (_pixels(_opened(member, mode)) for member in files[split]) for split in files}
    return classes, {split: Split(images[split], labels[split]) for split in files}


def resize(pixels: NDArray[np.uint8], side: int | None) -> NDArray[np.uint8]:
    """Resize an image (C, H, W), C being 1 or 3, to (C, side, side), aspect not kept; None leaves it as it is.

    Enlarging by a whole number repeats pixels; anything else is bilinear, with antialiasing where it shrinks.
    """
    channels, height, width = pixels.shape
    if side is None or (height, width) == (side, side):
        return pixels
    whole = side % width == 0 and side % height == 0
    image = Image.fromarray(pixels[0] if channels == 1 else pixels.transpose(1, 2, 0))
    return _pixels(image.resize((side, side), Image.Resampling.NEAREST if whole else Image.Resampling.BILINEAR))


def _tree(paths: list[Path]) -> dict[str, dict[str, list[Member]]]:
    """Files by split and class; hidden ones and those that lie elsewhere are left out."""
    tree: dict[str, dict[str, list[Member]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        shown = [member for member in members(path) if not _HIDDEN.search(member.name)]
        tops = {member.name.partition("/")[0] for member in shown}
        around = f"{tops.pop()}/" if len(tops) == 1 and not tops & {"train", "test", "val"} else ""
        for member in shown:
            name = member.name.removeprefix(around)
            place = _PLACE.fullmatch(name)
            if place and place["deeper"]:
                raise DataError(f"{member}: lies too deep, {_LAYOUT}; move its images up")
            if place:
                tree[place["split"]][place["class"]].append(member._replace(name=name))
    return tree


def _common_mode(files: list[Member], side: int | None) -> str:
    """``L`` if all images are grey, else ``RGB``; checks their sizes if they are not going to be resized."""
    modes, first = set(), None
    for member in files:
        image = _opened(member)
        modes.add(image.mode)
        first = first or image.size
        if side is None and image.size != first:
            raise DataError(
                f"images differ in size: {files[0]} has {first} pixels (width, height), {member} has {image.size}; "
                f"set `image_size` of the data set, to which all are resized"
            )
    return "L" if modes <= {"1", "L"} else "RGB"


def _opened(member: Member, mode: str | None = None) -> Image.Image:
    """An image, converted to ``mode``; without one, its pixels cannot be read any more."""
    try:
        with Image.open(BytesIO(member.read()), formats=_FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"pixel format {image.mode}, expected 8 bits a channel")
            if mode or "exif" in image.info:  # which may swap width and height
                with suppress(SyntaxError, struct.error):  # damaged EXIF turns nothing
                    ImageOps.exif_transpose(image, in_place=True)
            return _over_white(image).convert(mode) if mode else image
    # What else Pillow raises on damaged files; UnidentifiedImageError and truncation are OSErrors.
    except (*DAMAGE, SyntaxError, IndexError, struct.error, Image.DecompressionBombError) as error:
        expected = f"expected {', '.join(_FORMATS)}"
        raise DataError(f"{member}: not a readable image ({error}), {expected}; replace or remove it") from error


def _over_white(image: Image.Image) -> Image.Image:
    """An image without transparency."""
    if not image.has_transparency_data:
        return image
    seen = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of an ``L`` or ``RGB`` image, uint8 (C, H, W)."""
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
