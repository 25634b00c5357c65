"""A request that gets no result: the HTTP status, and a reason for the person who asked."""

from __future__ import annotations


class Refusal(Exception):
    """Raised anywhere below a request's handler; the client gets `{"error": reason}`.

    Attributes:
      status: of HTTP.
      reason: names the value, what was expected and what to do.
      retry_after: seconds after which the same request may succeed; None: it will not.
    """

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
