"""Files that are whole or not there: written beside their place, synced, and moved into it."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any


def write(path: Path, fill: Callable[[Path], object]) -> Path:
    """Let ``fill`` write a neighbour of ``path``, then put that in place: a crash leaves the old file or the new one.

    File and folder are synced, so that this holds for a power cut too. The folder is made if it is not there. What a
    killed process of this machine has left half-written of the same file goes. Returns ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in path.parent.glob(f".{os.uname().nodename}-*.{path.name}"):
        if not _runs(part.name.removeprefix(f".{os.uname().nodename}-").partition(".")[0]):
            part.unlink(missing_ok=True)
    part = path.with_name(f".{os.uname().nodename}-{os.getpid()}.{path.name}")  # the suffix stays: NumPy adds its own
    try:
        part.touch()
        mode = part.stat().st_mode  # what this user gives files; some libraries keep theirs from all others
        part.unlink()
        fill(part)
        part.chmod(mode)
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write text in UTF-8 with Unix line ends, as :func:`write` does."""
    return write(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, value: Any) -> Path:
    """Write a JSON document, as :func:`write` does."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_program(path: Path) -> Path:
    """Write a program that is the Python running now, for where another, or none, is called `python`."""
    text = f'#!/bin/sh\nexec "{sys.executable}" "$@"\n'
    if not os.access(path, os.X_OK) or path.read_text(encoding="utf-8") != text:
        write_text(path, text).chmod(0o755)
    return path


def digest(path: Path, kind: str = "sha256") -> str:
    """Digest of a file (hexadecimal); kind as in ``hashlib.new``."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.new, kind, usedforsecurity=False)).hexdigest()


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold an exclusive lock on a file, which is made if it is not there; the system frees it if this process dies.

    Yields its descriptor: a child that is given it holds the lock, too.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is false.
        OSError: the file system has no locks, as some network file systems have none.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        with suppress(PermissionError):
            os.fchmod(descriptor, 0o666)  # it holds nothing, and others who share the folder have to lock it too
    except PermissionError:
        descriptor = os.open(path, os.O_RDONLY)  # local file systems lock it all the same
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _runs(process: str) -> bool:
    if process.isdigit():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(int(process), 0)
            return True
        return Path(f"/proc/{process}").exists()
    return True
