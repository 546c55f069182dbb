"""Images of one's own are read as a photo viewer shows them: orientation and transparency."""

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ask.data import DataError
from ask.data.images import read_images

RED, GREEN = (255, 0, 0), (0, 255, 0)
FORMATS = {"JPEG": {"quality": 100, "subsampling": 0}, "PNG": {}, "WEBP": {"lossless": True}, "TIFF": {}}
# Where the corner that the sensor saw first lies in the picture (row, column), by EXIF's orientation.
CORNERS = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}


def photo(kind: str, orientation: int = 1, size: tuple[int, int] = (48, 32)) -> bytes:
    """A red image of which the sensor's first corner is green."""
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    image.save(stream, kind, exif=exif, **FORMATS[kind])
    return stream.getvalue()


def read(folder: Path, *images: bytes, side: int | None = None) -> list[NDArray[np.uint8]]:
    """The test images of a data set of these (and as many training images)."""
    for split in ("train", "test"):
        (folder / split / "one").mkdir(parents=True)
        for number, content in enumerate(images):
            (folder / split / "one" / f"{number}.img").write_bytes(content)
    return list(read_images([folder], side)[1]["test"].images)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", CORNERS)
def test_a_photo_is_turned_as_its_exif_says(orientation: int, kind: str, tmp_path: Path) -> None:
    (pixels,) = read(tmp_path, photo(kind, orientation))
    upright = orientation < 5
    assert pixels.shape == ((3, 32, 48) if upright else (3, 48, 32))
    row, column = CORNERS[orientation]
    corners = pixels[:, :: pixels.shape[1] - 1, :: pixels.shape[2] - 1].astype(int)
    green = corners[1] - corners[0] > 150
    expected = np.zeros((2, 2), dtype=bool)
    expected[row, column] = True
    np.testing.assert_array_equal(green, expected)


def test_sizes_are_compared_as_turned(tmp_path: Path) -> None:
    wide, tall = photo("JPEG"), photo("JPEG", 6, size=(32, 48))
    assert {pixels.shape for pixels in read(tmp_path / "same", wide, tall)} == {(3, 32, 48)}
    with pytest.raises(DataError, match="images differ in size"):
        read(tmp_path / "different", wide, photo("JPEG", 6))


def test_damaged_exif_turns_nothing(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 2), RED).save(stream, "JPEG", exif=b"Exif\x00\x00nonsense")
    (pixels,) = read(tmp_path, stream.getvalue())
    assert pixels.shape == (3, 2, 4)


def transparent(mode: str) -> bytes:
    """A black image of two pixels, the second of which nobody sees."""
    stream = io.BytesIO()
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0, 0, 0, 0])
        image.putpixel((1, 0), 1)
        image.save(stream, "PNG", transparency=1)
    else:
        image = Image.new(mode, (2, 1), (0, 255) if mode == "LA" else (0, 0, 0, 255))
        image.putpixel((1, 0), (0, 0) if mode == "LA" else (0, 0, 0, 0))
        image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    (pixels,) = read(tmp_path, transparent(mode))
    assert pixels[:, 0].T.tolist() == [[0, 0, 0], [255, 255, 255]]


def test_half_transparent_black_is_grey(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (1, 1), (0, 0, 0, 128)).save(stream, "PNG")
    (pixels,) = read(tmp_path, stream.getvalue())
    np.testing.assert_allclose(pixels.ravel(), 127, atol=1)
