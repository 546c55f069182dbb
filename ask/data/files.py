"""Files: digests, atomic JSON, a lock between processes, and downloads over HTTP."""

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ask.data.errors import DataError, NotFoundError

Verify = Callable[[Path, str], None]
"""Checks a file, named to users by the second argument; raises DataError if it is not the expected one."""

PAUSES = (1.0, 5.0)
"""Seconds to wait before the second and the third try of a download."""


def digest(path: Path, kind: str = "sha256") -> str:
    """Digest of a file (hexadecimal); kind as in `hashlib.new`."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, partial(hashlib.new, kind, usedforsecurity=False)).hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write a JSON file atomically: readers see the old file or the new one, never half of it."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on a file; a second process waits. The system frees it if this process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no locks
            raise DataError(f"{path}: cannot be locked ({error}); put the data on another file system") from error
        yield


def fetch(url: str, target: Path, verify: Verify, size: int = 4 << 30) -> None:
    """Download a file; go on from where an earlier, broken download of it stopped.

    Args:
        url: ``http://`` or ``https://`` address.
        target: Where the file goes, once ``verify`` has passed it; its folder exists.
        verify: Called with the complete file.
        size: Bytes at most.

    Raises:
        NotFoundError: the server refuses the file (HTTP 4xx).
        DataError: no try gave a file that passes ``verify``.
    """
    # Named by the address, so that the beginning of one copy is never continued with the end of another.
    part = target.with_name(f".{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        try:
            _receive(url, part, size)
            verify(part, url)
            part.replace(target)
            return
        except NotFoundError:
            raise
        except DataError as error:
            part.unlink(missing_ok=True)
            failure: Exception = error
        except (OSError, HTTPException) as error:
            failure = error
    raise DataError(f"{url}: gave up after {len(PAUSES) + 1} tries; the last one: {failure}") from failure


def _receive(url: str, part: Path, limit: int) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "ask-data", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=60)
    except HTTPError as error:
        error.close()
        if error.code == 416:  # nothing is left to send: begin anew
            part.unlink(missing_ok=True)
        elif 400 <= error.code < 500 and error.code not in (408, 429):
            raise NotFoundError(f"{url}: HTTP {error.code} {error.reason}") from error
        raise
    with response:
        have = have if response.status == 206 else 0
        total = have + int(response.headers.get("Content-Length", 0))
        with part.open("ab" if have else "wb") as stream:
            while chunk := response.read(1 << 20):
                have += len(chunk)
                if have > limit:
                    raise DataError(f"{url}: more than the {limit} bytes expected")
                stream.write(chunk)
    if have < total:
        raise ConnectionError(f"the connection closed after {have} of {total} bytes")
