"""Images of trees of files (:mod:`ask.data.trees`), and resizing."""

import struct
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ask.data.readers import Split
from ask.data.trees import DAMAGE, Member, splits
from ask.errors import DataError

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")


def read_images(
    paths: list[Path], side: int | None, classes: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Read trees of image files together, in order of class and file name; grey if all files are, else RGB.

    Hidden files, and files that do not lie in a class folder of a known split, are left out. The splits may lie in one
    folder of their own. Images are as a photo viewer shows them: turned as their EXIF orientation says, and what is
    transparent over white. ``paths`` and ``classes`` are as in `splits`, whose errors it shares; images are resized to
    ``side`` pixels (None: all must have the same size).

    Returns the class folders, and the splits, whose images are decoded (once) as they are iterated.
    """
    classes, found = splits(paths, classes)
    files = {split: [member for inside in by_class for member in inside] for split, by_class in found.items()}
    numbers = np.arange(len(classes), dtype=np.int64)
    labels = {split: np.repeat(numbers, [len(inside) for inside in by_class]) for split, by_class in found.items()}
    mode = _common_mode(files["train"] + files["test"], side)
    images = {split: (_pixels(opened(member, mode)) for member in files[split]) for split in files}
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


def _common_mode(files: list[Member], side: int | None) -> str:
    """``L`` if all images are grey, else ``RGB``; checks their sizes if they are not going to be resized."""
    modes, first = set(), None
    for member in files:
        image = opened(member)
        modes.add(image.mode)
        first = first or image.size
        if side is None and image.size != first:
            raise DataError(
                f"images differ in size: {files[0]} has {first} pixels (width, height), {member} has {image.size}; "
                f"set `image_size` of the data set, to which all are resized"
            )
    return "L" if modes <= {"1", "L"} else "RGB"


def opened(member: Member, mode: str | None = None) -> Image.Image:
    """An image, converted to ``mode``; without one, its pixels cannot be read any more."""
    try:
        with Image.open(BytesIO(member.read()), formats=_FORMATS) as image:
            deep = any(f";16{end}" in str(tile[3]) for tile in image.tile for end in "BLN")
            if deep or image.mode.startswith(("I", "F")):
                raise ValueError(f"pixel format {image.mode}{', 16 bits' * deep}, expected 8 bits a channel")
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
