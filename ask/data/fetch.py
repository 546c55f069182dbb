"""Downloads over HTTP: resumed, retried, verified, and never half a file under the final name."""

import hashlib
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from .errors import DataError, NotFoundError
from .files import CHUNK

Verify = Callable[[Path, str], None]
"""Checks a file, named to users by the second argument; raises DataError if it is not the expected one."""

LARGEST = 4 << 30
"""Bytes at which a download of unknown size is given up."""
PAUSES = (1.0, 5.0)
"""Seconds to wait before the second and the third try."""
_TIMEOUT = 60.0
_TEMPORARY = (408, 416, 429)


def fetch(
    url: str,
    target: Path,
    verify: Verify | None = None,
    *,
    size: int | None = None,
    pauses: Sequence[float] | None = None,
) -> None:
    """Download a file; go on from where an earlier, broken download of it stopped.

    Args:
        url: ``http://`` or ``https://`` address.
        target: Where the file goes, once it is complete and verified.
        verify: Called with the complete file before it is moved to ``target``.
        size: Expected bytes, if known.
        pauses: Seconds between tries; one more try than pauses. None: `PAUSES`.

    Raises:
        NotFoundError: the server refuses the file (HTTP 4xx).
        DataError: no try gave a file that passes ``verify``.
    """
    # Named by the address, so that the beginning of one copy is never continued with the end of another.
    part = target.with_name(f".{target.name}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    waits: list[float | None] = [*(PAUSES if pauses is None else pauses), None]
    for wait in waits:
        try:
            _receive(url, part, size)
            if verify is not None:
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
        if wait is not None:
            time.sleep(wait)
    raise DataError(f"{url}: gave up after {len(waits)} tries; the last one: {failure}") from failure


def _receive(url: str, part: Path, size: int | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have and have == size:
        return
    headers = {"User-Agent": "ask-data", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:
            part.unlink(missing_ok=True)
        if 400 <= error.code < 500 and error.code not in _TEMPORARY:
            raise NotFoundError(f"{url}: HTTP {error.code} {error.reason}") from error
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            have = 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        if size is not None and total is not None and total != size:
            raise DataError(f"{url}: the server announces {total} bytes, expected {size}")
        with part.open("ab" if resumed else "wb") as stream:
            while chunk := response.read(CHUNK):
                have += len(chunk)
                if have > (size or LARGEST):
                    raise DataError(f"{url}: more than the {size or LARGEST} bytes expected")
                stream.write(chunk)
    if total is not None and have < total:
        raise ConnectionError(f"the connection closed after {have} of {total} bytes")
