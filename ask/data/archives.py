"""Archives and folders read as lists of members, without unpacking anything to disk."""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .errors import DataError


@dataclass(frozen=True)
class Member:
    """A file in an archive or folder."""

    name: str
    """Path inside, with forward slashes."""
    origin: str
    """The archive or folder, for messages."""
    read: Callable[[], bytes]
    """Gives the content; raises DataError if it is damaged."""

    def __str__(self) -> str:
        return f"{self.origin}/{self.name}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an archive may hold at most; a guard against decompression bombs."""

    members: int
    """Number of files and folders."""
    file_bytes: int
    """Decompressed bytes of one file."""
    total_bytes: int
    """Decompressed bytes of all files."""


PUBLISHED_LIMITS = Limits(members=100_000, file_bytes=64 << 20, total_bytes=1 << 30)
"""Of publishers' archives: several times what they hold."""
OWN_LIMITS = Limits(members=2_000_000, file_bytes=256 << 20, total_bytes=256 << 30)
"""Of users' own archives: an ImageNet fits."""


class _Guard:
    """Checks the names and adds up the sizes of an archive's members."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self.limits = path, limits
        self.members = self.total = 0
        self.names: set[str] = set()

    def admit(self, name: str, size: int, kind: str) -> str:
        """Return the normal form of a member's name, or raise DataError."""
        parts = PurePosixPath(name).parts
        if not name or name.startswith("/") or "\\" in name or "\0" in name or ".." in parts or name[1:2] == ":":
            self.refuse(name, "its path is absolute, climbs with `..` or has backslashes")
        if kind not in ("file", "folder"):
            self.refuse(name, "it is neither a file nor a folder (a link or a device)")
        self.members += 1
        self.total += size
        if self.members > self.limits.members:
            self.refuse(name, f"the archive has more than {self.limits.members} members")
        if size > self.limits.file_bytes:
            self.refuse(name, f"it is larger than {self.limits.file_bytes} bytes")
        if self.total > self.limits.total_bytes:
            self.refuse(name, f"the archive's content is larger than {self.limits.total_bytes} bytes")
        normal = "/".join(parts)
        if kind == "file":
            if normal in self.names:
                self.refuse(name, "it is there twice")
            self.names.add(normal)
        return normal

    def refuse(self, name: str, reason: str) -> None:
        raise DataError(f"{self.path}: member {name!r} refused: {reason}; make the archive anew, with plain files only")


@contextmanager
def open_zip(path: Path, limits: Limits) -> Iterator[list[Member]]:
    """List the files of a zip archive; their content can be read until the context ends, from several threads.

    Raises:
        DataError: not a zip archive, or one with unsafe or too many members.
    """
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable zip archive ({error}); get or make it anew") from error
    with archive:
        guard = _Guard(path, limits)
        members = []
        for info in archive.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)
            kind = "folder" if info.is_dir() else "file" if mode in (0, stat.S_IFREG) else "other"
            name = guard.admit(info.orig_filename, info.file_size, kind)
            if kind == "file":
                members.append(Member(name, str(path), _zip_reader(archive, info, path)))
        yield members


def _zip_reader(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return archive.read(info)
        # RuntimeError: the member is encrypted; NotImplementedError: an unknown compression.
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise DataError(f"{path}: {info.filename}: unreadable ({error}); get or make the archive anew") from error

    return read


def read_tar(path: Path, limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a compressed tar archive, one after the other.

    Raises:
        DataError: not a tar archive, a damaged one, or one with unsafe or too many members.
    """
    guard = _Guard(path, limits)
    try:
        with tarfile.open(path, "r|*") as archive:
            for info in archive:
                kind = "folder" if info.isdir() else "file" if info.isreg() else "other"
                name = guard.admit(info.name, info.size, kind)
                if kind == "file":
                    content = archive.extractfile(info)
                    yield name, content.read() if content else b""
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path}: damaged or truncated archive ({error}); delete it and get it anew") from error


def folder_members(folder: Path) -> list[Member]:
    """The entries of ``<split>/<class>/`` folders below ``folder``; a folder there is listed as ``<name>/*``.

    Links are followed: a user's own folders often are links to a larger disk.
    """
    members = []
    for path in folder.glob("*/*/*"):
        name = path.relative_to(folder).as_posix()
        members.append(Member(f"{name}/*" if path.is_dir() else name, str(folder), _file_reader(path)))
    return members


def _file_reader(path: Path) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: unreadable ({error}); remove it, or make it a readable image file") from error

    return read
