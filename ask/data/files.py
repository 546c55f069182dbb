"""Small file helpers: digests, atomic JSON, a lock between processes."""

import fcntl
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from .errors import DataError

CHUNK = 1 << 20
"""Bytes read at a time."""
GZIP_MAGIC = b"\x1f\x8b"


def digests(path: Path) -> tuple[int, str, str]:
    """Size in bytes, md5 and sha256 (hexadecimal) of a file, in one pass."""
    size, md5, sha256 = 0, hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            md5.update(chunk)
            sha256.update(chunk)
    return size, md5.hexdigest(), sha256.hexdigest()


@contextmanager
def open_content(path: Path, label: str | None = None) -> Iterator[BufferedIOBase]:
    """Open a file for reading, decompressed if it is gzip, whatever its name; errors call it ``label``.

    Raises:
        DataError: the gzip stream is damaged or cut short (raised where the damage is met, inside the ``with`` block).
    """
    with path.open("rb") as stream:
        compressed = stream.read(2) == GZIP_MAGIC
        stream.seek(0)
        if not compressed:
            yield stream
            return
        with gzip.GzipFile(fileobj=stream) as content:
            try:
                yield content
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise DataError(
                    f"{label or path}: damaged or truncated gzip file ({error}); delete it and get it anew"
                ) from error


def content_sha256(path: Path, limit: int, label: str | None = None) -> str:
    """sha256 of a file's decompressed content, of at most ``limit`` bytes; errors call the file ``label``.

    Raises:
        DataError: the gzip stream is damaged, or holds more than ``limit`` bytes.
    """
    sha256, size = hashlib.sha256(), 0
    with open_content(path, label) as content:
        while chunk := content.read(CHUNK):
            size += len(chunk)
            if size > limit:
                raise DataError(
                    f"{label or path}: more than {limit} bytes of content; get the publisher's file instead"
                )
            sha256.update(chunk)
    return sha256.hexdigest()


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        DataError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); delete it and run `python -m ask data` again") from error


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically: readers see the old file or the new one, never half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; a second process waits. The system frees it if this process dies.

    Raises:
        DataError: the file system has no locks, as some network file systems do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            raise DataError(
                f"{path}: cannot be locked ({error}); put the data folder on another file system"
            ) from error
        yield
