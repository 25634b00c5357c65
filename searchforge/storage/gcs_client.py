"""The Google Cloud Storage client: credentials, retries, checksums and the errors that a request may end with."""

from __future__ import annotations

import base64
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import requests
from google.api_core.exceptions import GoogleAPIError
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter

from searchforge.errors import UsageError
from searchforge.storage.base import GCS_SCHEME

ERRORS = (GoogleAPIError, GoogleAuthError, InvalidResponse, DataCorruption, requests.RequestException, ConnectionError)
"""Errors that a request may raise once its retries are exhausted."""

_CONNECTIONS = 64


@dataclass(frozen=True)
class RetryPolicy:
    """Timeouts and retries of requests.

    Attributes:
      timeout_seconds: Timeouts for connecting and between two bytes of a response.
      retry_seconds: Time after which a failing request is no longer retried.
      first_delay_seconds: Upper bound of the random delay before the first retry; it doubles with each further one.
      chunk_bytes: Bytes per request of an upload, which resumes after its last complete chunk.
    """

    timeout_seconds: tuple[float, float] = (10.0, 60.0)
    retry_seconds: float = 180.0
    first_delay_seconds: float = 1.0
    chunk_bytes: int = 8 << 20

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of every request."""
        delays = DEFAULT_RETRY.with_delay(initial=self.first_delay_seconds, maximum=30.0, multiplier=2.0)
        return {"timeout": self.timeout_seconds, "retry": delays.with_timeout(self.retry_seconds)}


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
