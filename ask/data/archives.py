"""Folders, zips and tar archives as lists of their files, without unpacking anything to disk."""

import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from ask.data.errors import DataError

# What an archive may hold at most, a guard against decompression bombs; an ImageNet fits.
MOST_FILES = 2_000_000
FILE_BYTES = 256 << 20
TOTAL_BYTES = 256 << 30

# RuntimeError: the member is encrypted or of an unknown compression.
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Member:
    """A file in an archive or folder."""

    name: str  # path inside, with forward slashes
    origin: str  # the archive or folder, for messages
    content: Callable[[], bytes]

    def read(self) -> bytes:
        """The content; DataError if it is damaged."""
        try:
            return self.content()
        except _DAMAGE as error:
            raise DataError(f"{self}: unreadable ({error}); get it anew, or remove it") from error

    def __str__(self) -> str:
        return f"{self.origin}/{self.name}"


def members(path: Path) -> list[Member]:
    """The files of a folder (links are followed), a zip or a compressed tar archive (then held in memory).

    Raises:
        DataError: not an archive, a damaged one, or one with unsafe or too large members.
    """
    if path.is_dir():
        files = [Path(folder, name) for folder, _, names in os.walk(path, followlinks=True) for name in names]
        return [Member(file.relative_to(path).as_posix(), str(path), file.read_bytes) for file in files]
    try:
        return _read_tar(path) if path.name.endswith((".tgz", ".tar.gz")) else _list_zip(path)
    except _DAMAGE as error:
        raise DataError(f"{path}: not a readable archive ({error}); get it anew") from error


def _list_zip(path: Path) -> list[Member]:
    archive = zipfile.ZipFile(path)  # closes itself with the last of its members
    files = [info for info in archive.infolist() if not info.is_dir()]
    plain = [stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG) for info in files]
    entries = ((i.orig_filename, i.file_size, ok, partial(archive.read, i)) for i, ok in zip(files, plain, strict=True))
    return list(_admit(path, entries))


def _read_tar(path: Path) -> list[Member]:
    def content(info: tarfile.TarInfo) -> bytes:
        stream = archive.extractfile(info)
        return stream.read() if stream else b""

    # Read from front to back, which is the only fast way in a compressed tar archive.
    with tarfile.open(path, "r|*") as archive:
        entries = ((info.name, info.size, info.isreg(), partial(content, info)) for info in archive if not info.isdir())
        return [replace(member, content=partial(bytes, member.read())) for member in _admit(path, entries)]


def _admit(path: Path, entries: Iterable[tuple[str, int, bool, Callable[[], bytes]]]) -> Iterator[Member]:
    """Check entries of an archive: name, size, whether it is a regular file, and its content."""
    total = 0
    for count, (name, size, regular, content) in enumerate(entries, start=1):
        parts = PurePosixPath(name).parts
        total += size
        if name.startswith("/") or "\\" in name or ".." in parts or name[1:2] == ":":
            wrong = "its path is absolute, climbs with `..` or has backslashes"
        elif not regular:
            wrong = "it is a link or a device"
        elif count > MOST_FILES or size > FILE_BYTES or total > TOTAL_BYTES:
            wrong = f"at most {MOST_FILES} files of {FILE_BYTES} bytes, {TOTAL_BYTES} in all, are read"
        else:
            yield Member("/".join(parts), str(path), content)
            continue
        raise DataError(f"{path}: member {name!r} refused: {wrong}; make the archive anew, with plain files only")
