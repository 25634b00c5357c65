"""The Google Cloud Storage client: credentials, retries, checksums and the errors that a request may end with."""

from __future__ import annotations

import base64
import functools
import itertools
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import google_crc32c
import requests
from google.api_core.exceptions import GoogleAPIError, RetryError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter

from searchforge.errors import UsageError
from searchforge.storage.base import GCS_SCHEME
from searchforge.storage.patience import retry_seconds

logger = logging.getLogger(__name__)

ERRORS = (GoogleAPIError, GoogleAuthError, InvalidResponse, DataCorruption, requests.RequestException, ConnectionError)
"""Errors that a request may raise once its retries are exhausted."""

_CONNECTIONS = 64

_NOTICE_SECONDS = 10.0
"""Least time between two log lines about requests that are retried."""


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts and retries of requests.

    Attributes:
      timeout_seconds: Timeouts for connecting and between two bytes of a response.
      retry_seconds: Time after which a failing request is no longer retried; by default `patience.retry_seconds()`.
      first_delay_seconds: Upper bound of the random delay before the first retry; it doubles with each further one.
      chunk_bytes: Bytes per request of an upload, which resumes after its last complete chunk.
    """

    timeout_seconds: tuple[float, float] = (10.0, 60.0)
    retry_seconds: float = field(default_factory=retry_seconds)
    first_delay_seconds: float = 1.0
    chunk_bytes: int = 8 << 20
    _next_notice: list[float] = field(default_factory=lambda: [0.0], init=False, repr=False, compare=False)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a request. It is logged when the request fails for the second time and is retried."""
        delays = DEFAULT_RETRY.with_delay(initial=self.first_delay_seconds, maximum=30.0, multiplier=2.0)
        retry = delays.with_timeout(self.retry_seconds)

        failures = itertools.count(1)

        def log(error: Exception) -> None:
            if next(failures) > 1 and time.monotonic() >= self._next_notice[0]:
                self._next_notice[0] = time.monotonic() + _NOTICE_SECONDS
                limit = f"up to {self.retry_seconds:.0f} s"
                logger.warning(f"Google Cloud Storage does not answer ({reason(error)}); trying again for {limit}")

        return {"timeout": self.timeout_seconds, "retry": lambda request: retry(request, on_error=log)}


def reason(error: BaseException) -> str:
    """Returns why a request failed, in one line and without the errors that libraries wrap around it."""
    if isinstance(error, RetryError) and error.cause is not None:
        error = error.cause
    if isinstance(error, requests.RequestException) and error.args:
        error = getattr(error.args[0], "reason", None) or error  # of urllib3's MaxRetryError
    return str(error).strip().partition("\n")[0]  # the rest may be an HTML page of the service


def gcs_client() -> Any:
    """Returns this process's client. `STORAGE_EMULATOR_HOST` is honoured, without credentials.

    Raises:
      UsageError: There are no credentials.
    """
    return _process_client(os.getpid(), os.environ.get("STORAGE_EMULATOR_HOST"))


@functools.lru_cache(maxsize=1)
def _process_client(process: int, host: str | None) -> Any:
    """Creates one client per process: its connections are reused, but must not be shared with a forked process."""
    try:
        client = storage.Client(project="emulator", credentials=AnonymousCredentials()) if host else storage.Client()
    except (DefaultCredentialsError, OSError) as error:
        raise UsageError(
            f"no Google Cloud credentials for gs:// ({error}); run `gcloud auth application-default login`, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to a service account's key file"
        ) from None
    for scheme in ("https://", "http://"):  # the default pool of ten connections makes further threads wait
        client._http.mount(scheme, HTTPAdapter(pool_maxsize=_CONNECTIONS))
    return client


def split_uri(uri: str) -> tuple[str, str]:
    """Splits gs://bucket/name into bucket and name.

    Raises:
      ValueError: The URI contains no bucket.
    """
    bucket, _, name = uri.removeprefix(GCS_SCHEME).partition("/")
    if not bucket:
        raise ValueError(f"{uri!r} names no bucket; expected gs://bucket/prefix")
    return bucket, name


def crc32c(data: bytes) -> str:
    """Returns the CRC32C of bytes as GCS reports it: base64 of the big-endian value."""
    return _crc32c_of_blocks(iter([data]))


def crc32c_file(path: Path) -> str:
    """Returns the CRC32C of a file, like `crc32c`, in constant memory."""
    with path.open("rb") as file:
        return _crc32c_of_blocks(iter(lambda: file.read(1 << 20), b""))


def _crc32c_of_blocks(blocks: Iterator[bytes]) -> str:
    value = 0
    for block in blocks:
        value = google_crc32c.extend(value, block)
    return base64.b64encode(value.to_bytes(4, "big")).decode()
