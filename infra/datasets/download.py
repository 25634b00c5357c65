"""Resumable HTTP download of a large file of known size.

No dependency offers this: an interrupted download continues from the bytes it already has, in the same run or in a
later one, but only if the server still has the same version of the file (If-Range; RFC 9110, 13.1.5).
"""

from __future__ import annotations

import logging
import re
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from searchforge import progress
from searchforge.clock import Clock
from searchforge.errors import JobError

ATTEMPTS = 5
"""Number of consecutive failures without any bytes received after which a download is abandoned."""

RETRY_SECONDS = 1.0
"""Delay before the first retry; doubled with each consecutive failure."""

TIMEOUT_SECONDS = 60.0
"""Maximum time without a response."""

_BLOCK = 2**20

logger = logging.getLogger(__name__)


def download(url: str, path: Path, size: int, clock: Clock) -> None:
    """Downloads a file of `size` bytes to `path`; until it is complete, its bytes are in `<path>.part`.

    Raises:
      JobError: The server cannot be reached, does not have the file, or has one of another size.
    """
    part = path.with_name(f"{path.name}.part")
    failures = 0
    while _size(part) != size:
        before, reason = _size(part), "the connection was closed"
        try:
            _receive(url, part, size)
        except urllib.error.HTTPError as error:
            reason = f"the server responded {error.code} {error.reason}"
            if error.code == 416:  # the server's file ends before the requested range
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code != 429:
                raise JobError(f"{url} cannot be downloaded: {reason}") from None
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (ConnectionError, TimeoutError, HTTPException) as error:
            reason = str(error) or type(error).__name__
        if _size(part) == size:
            break
        failures = 0 if _size(part) > before else failures + 1
        if failures == ATTEMPTS:
            raise JobError(
                f"{url} cannot be downloaded: {reason}; check the connection and run the same command again, which "
                f"resumes at {_size(part)} of {size} bytes"
            )
        clock.sleep(RETRY_SECONDS * 2**failures)
    part.replace(path)
    _validator_file(part).unlink(missing_ok=True)


def _receive(url: str, part: Path, size: int) -> None:
    """Appends what the server sends to `part`, or starts over if the server's file has changed."""
    start, validator = _size(part), _validator_file(part)
    headers = {}
    if start:
        headers["Range"] = f"bytes={start}-"
        if validator.exists():
            headers["If-Range"] = validator.read_text()
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS) as response:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if response.status == 206 and (not span or int(span[1]) != start):
            part.unlink()
            raise HTTPException("the server sent a different range than requested")
        total = span[2] if response.status == 206 and span else response.headers.get("Content-Length", "*")
        if total != "*" and int(total) != size:
            raise JobError(f"{url} has {total} bytes, expected {size}: the file has been replaced")
        if response.status != 206:
            if start:
                logger.info(f"  {url} has changed, or its server does not support ranges; starting over")
            start = 0
        _save_validator(response, validator)
        with (
            part.open("ab" if start else "wb") as file,
            progress.track(f"downloading {part.stem}", _megabytes(size), "MB") as advance,
        ):
            advance(_megabytes(start))
            while block := _read(response, min(_BLOCK, size + 1 - start)):
                file.write(block)
                advance(_megabytes(start + len(block)) - _megabytes(start))
                start += len(block)
    if start > size:
        part.unlink()
        raise JobError(f"{url} has more than {size} bytes: the file has been replaced")


def _read(response: HTTPResponse, count: int) -> bytes:
    try:
        return response.read(count)
    except OSError as error:  # a network error, which unlike a disk error is retried
        raise HTTPException(error.strerror or str(error)) from error


def _save_validator(response: HTTPResponse, path: Path) -> None:
    """Saves the response's ETag or date for If-Range, which accepts only strong validators."""
    etag = response.headers.get("ETag", "")
    validator = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    if validator:
        path.write_text(validator)
    else:
        path.unlink(missing_ok=True)


def _validator_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _megabytes(count: int) -> int:
    return count // 10**6
