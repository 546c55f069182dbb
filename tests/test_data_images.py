"""Archives, trees of image files and their decoding."""

import io
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ask.data import DataError, trees
from ask.data.images import read_images, resize
from ask.data.trees import members

Arrays = dict[str, tuple[np.ndarray, np.ndarray]]


def png(seed: int, size: tuple[int, int] = (4, 4), mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "PNG")
    return stream.getvalue()


def deep_png(colour: bool = False) -> bytes:
    """Sixteen bits a channel; Pillow opens those in colour as if they had eight, and writes none."""
    stream = io.BytesIO()
    if not colour:
        Image.fromarray(np.zeros((4, 4), dtype=np.uint16)).save(stream, "PNG")
        return stream.getvalue()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + struct.pack(">12H", *[4095] * 12)) * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def write_zip(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    return path


def write_folder(path: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


CONTENTS = {
    "train/dog/b.png": png(1),
    "train/dog/a.png": png(2),
    "train/cat/z.png": png(3),
    "test/cat/a.png": png(4),
    "test/dog/b.png": png(5),
}


def read(path: Path, side: int | None = None) -> tuple[tuple[str, ...], Arrays]:
    classes, splits = read_images([path], side)
    arrays = {name: np.stack([resize(image, side) for image in split.images]) for name, split in splits.items()}
    return classes, {name: (arrays[name], split.labels) for name, split in splits.items()}


def same(one: Arrays, other: Arrays) -> bool:
    return all(np.array_equal(a, b) for name in ("train", "test") for a, b in zip(one[name], other[name], strict=True))


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MOST_FILES", 10), ("FILE_BYTES", 1000), ("TOTAL_BYTES", 2000)):
        monkeypatch.setattr(trees, name, value)


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\..\\evil", "C:/evil"])
def test_zip_refuses_unsafe_names(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "a.zip", {name: b"x"})
    with pytest.raises(DataError, match="refused: its path") as caught:
        members(path)
    assert str(path) in str(caught.value)


def test_zip_refuses_links(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("train/cat/link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match="a link or a device"):
        members(tmp_path / "link.zip")


BOMBS = [{f"{number}": b"" for number in range(11)}, {"a": bytes(1001)}, {name: bytes(900) for name in "abc"}]


@pytest.mark.parametrize("contents", BOMBS)
def test_zip_limits(tmp_path: Path, contents: dict[str, bytes], low_limits: None) -> None:
    path = write_zip(tmp_path / "a.zip", contents)
    with pytest.raises(DataError, match="at most 10 files of 1000 bytes, 2000 in all"):
        members(path)


def test_zip_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"a\.zip: not a readable archive"):
        members(path)
    write_zip(path, {"a": b"needle"})
    path.write_bytes(path.read_bytes().replace(b"needle", b"noodle", 1))
    (member,) = members(path)
    with pytest.raises(DataError, match="a: unreadable"):
        member.read()


def write_tar(path: Path, members: list[tarfile.TarInfo], data: bytes = b"") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info in members:
            archive.addfile(info, io.BytesIO(data[: info.size]))
    return path


def tar_info(name: str, kind: bytes = tarfile.REGTYPE, size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (tar_info("../evil"), "its path"),
        (tar_info("/evil"), "its path"),
        (tar_info("link", tarfile.SYMTYPE), "a link or a device"),
        (tar_info("link", tarfile.LNKTYPE), "a link or a device"),
        (tar_info("device", tarfile.CHRTYPE), "a link or a device"),
        (tar_info("pipe", tarfile.FIFOTYPE), "a link or a device"),
        (tar_info("large", size=1001), "at most 10 files of 1000 bytes"),
    ],
)
def test_tar_refuses_unsafe_members(tmp_path: Path, info: tarfile.TarInfo, message: str, low_limits: None) -> None:
    path = write_tar(tmp_path / "a.tgz", [info], bytes(1001))
    with pytest.raises(DataError, match=message):
        members(path)


def test_tar_reads_files_and_passes_folders_by(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tgz", [tar_info("./a", tarfile.DIRTYPE), tar_info("./a/b", size=3)], b"abc")
    assert [(member.name, member.read()) for member in members(path)] == [("a/b", b"abc")]


def test_folder_zip_and_tar_give_the_same_arrays(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", CONTENTS)
    # In another order, with a folder around it, and with what file managers leave behind.
    wrapped = {f"own/{name}": data for name, data in reversed(CONTENTS.items())}
    extra = {"__MACOSX/own/train/cat/._z.png": b"x", "own/train/cat/.DS_Store": b"x", "own/train/README.txt": b"x"}
    archive = write_zip(tmp_path / "own.zip", wrapped | extra)
    tarred = tmp_path / "own.tgz"
    with tarfile.open(tarred, "w:gz") as tar:
        tar.add(folder, "own")
    classes, arrays = read(folder)
    assert classes == ("cat", "dog")
    assert arrays["train"][1].tolist() == [0, 1, 1]
    # By class, then by file name.
    ordered = [read_one(f"train/{name}.png") for name in ("cat/z", "dog/a", "dog/b")]
    np.testing.assert_array_equal(arrays["train"][0], np.stack(ordered))
    assert same(read(archive)[1], arrays)
    assert same(read(tarred)[1], arrays)


def test_a_folder_around_the_splits_is_looked_into(tmp_path: Path) -> None:
    write_folder(tmp_path / "outer" / "inner", CONTENTS)
    assert same(read(tmp_path / "outer")[1], read(tmp_path / "outer" / "inner")[1])


def test_val_stands_in_for_test(tmp_path: Path) -> None:
    renamed = {name.replace("test/", "val/"): data for name, data in CONTENTS.items()}
    assert len(read(write_folder(tmp_path, renamed))[1]["test"][0]) == 2


def _drop_split(contents: dict[str, bytes]) -> None:
    for name in [name for name in contents if name.startswith("test/")]:
        del contents[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_split, "no images of split test"),
        (lambda contents: contents.update({"test/cow/a.png": png(0)}), "test/cow is none of the classes cat, dog"),
        (lambda contents: contents.update({"train/cat/more/a.png": png(0)}), "lies too deep"),
        (
            lambda contents: contents.update({"train/cat/bad.png": b"no image"}),
            "train/cat/bad.png: not a readable image",
        ),
        (lambda contents: contents.update({"train/cat/cut.png": png(0)[:-40]}), "train/cat/cut.png: not a readable"),
        (
            lambda contents: contents.update({"train/cat/deep.png": deep_png()}),
            r"deep.png: not a readable image \(pixel format I;16",
        ),
        (
            lambda contents: contents.update({"train/cat/deep.png": deep_png(colour=True)}),
            r"deep.png: not a readable image \(pixel format RGB, 16 bits, expected 8 bits a channel",
        ),
    ],
)
@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_tree_errors(
    tmp_path: Path,
    change: Callable[[dict[str, bytes]], None],
    message: str,
    write: Callable[[Path, dict[str, bytes]], Path],
) -> None:
    contents = dict(CONTENTS)
    change(contents)
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "own", contents))


def test_sizes_that_differ_need_image_size(tmp_path: Path) -> None:
    path = write_folder(tmp_path, CONTENTS | {"train/dog/wide.png": png(0, (6, 4))})
    with pytest.raises(
        DataError, match=r"train/cat/z.png has \(4, 4\) .*train/dog/wide.png has \(6, 4\); .*`image_size`"
    ):
        read(path)
    arrays = read(path, side=8)[1]
    assert arrays["train"][0].shape == (4, 3, 8, 8)
    np.testing.assert_array_equal(arrays["train"][0][0], read_one("train/cat/z.png").repeat(2, 1).repeat(2, 2))


def read_one(name: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(CONTENTS[name]))).transpose(2, 0, 1)


def test_grey_only_if_all_are(tmp_path: Path) -> None:
    grey = {name: png(number, mode="L") for number, name in enumerate(CONTENTS)}
    assert read(write_folder(tmp_path / "grey", grey))[1]["train"][0].shape == (3, 1, 4, 4)
    mixed = grey | {"test/dog/c.png": png(9, mode="RGBA")}
    assert read(write_folder(tmp_path / "mixed", mixed))[1]["train"][0].shape == (3, 3, 4, 4)


def test_links_in_users_folders_are_followed(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk", CONTENTS)
    (tmp_path / "own").mkdir()
    for split in ("train", "test"):
        (tmp_path / "own" / split).symlink_to(tmp_path / "disk" / split)
    assert same(read(tmp_path / "own")[1], read(tmp_path / "disk")[1])
    shutil.rmtree(tmp_path / "disk" / "test")
    with pytest.raises(DataError, match="no images of split test"):
        read(tmp_path / "own")
