"""The error that becomes an HTTP error response."""

from __future__ import annotations


class RequestError(Exception):
    """A request that cannot be fulfilled; the client receives `{"error": reason}`.

    Attributes:
      status: HTTP status code.
      reason: Message that names the value, what was expected, and what to do.
      retry_after: Seconds after which the same request may succeed; None if retrying is pointless.
    """

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
