"""Searches for clients: runs them in the pool, filters the hits by metadata, and caches the responses.

The Task Library cannot filter. With conditions, the service therefore retrieves CANDIDATES hits and returns the first k
that meet all conditions; an item beyond those candidates is not found. `considered` in the response is the number of
hits that were filtered.

Releases are immutable, so cached responses never become stale.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cachetools import LRUCache
from PIL import Image

from infra.serve.parameters import SearchParameters
from infra.serve.pool import SearcherPool
from infra.serve.request_error import RequestError
from infra.serve.served_release import ServedRelease
from searchforge.hashing import sha256_bytes
from searchforge.image_decoding import RejectedInput
from searchforge.preprocessing import Preprocessing

CANDIDATES = 1_000
"""Number of hits to which conditions are applied."""

_CACHE_BYTES = 32 * 2**20
_TOO_LARGE = {"too_large", "too_many_pixels"}


class SearchService:
    """Searches served releases. Call `close` after use.

    Args:
      pool: Workers that run the queries.
      max_pixels: Maximum number of pixels of a query image; larger ones are refused before they are decoded.
    """

    def __init__(self, pool: SearcherPool, max_pixels: int) -> None:
        self.pool = pool
        self._max_pixels = max_pixels
        self._cache: LRUCache[Hashable, bytes] = LRUCache(_CACHE_BYTES, getsizeof=len)
        self._running: dict[Hashable, asyncio.Task[dict[str, Any]]] = {}
        self._decoders = ThreadPoolExecutor(pool.workers, thread_name_prefix="decoder")

    def close(self) -> None:
        """Stops the threads that decode images."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def search_text(self, release: ServedRelease, text: str, parameters: SearchParameters) -> bytes:
        """Searches by a text and returns the response as JSON.

        Raises:
          RequestError: The release does not accept texts, or the pool could not run the query.
        """
        path = release.searcher("text")

        async def search() -> dict[str, Any]:
            return {"query": text, **await self._search(release, path, text, parameters)}

        return await self._cached(("text", text, release.id, parameters.k, parameters.where), search)

    async def search_image(self, release: ServedRelease, data: bytes, parameters: SearchParameters) -> bytes:
        """Searches by the bytes of an image file and returns the response as JSON; `query` is their SHA-256.

        Raises:
          RequestError: The image cannot be decoded, the release does not accept images, or the pool could not run the
            query.
        """
        path = release.searcher("image")
        content_hash = sha256_bytes(data)

        async def search() -> dict[str, Any]:
            loop = asyncio.get_running_loop()
            file = await loop.run_in_executor(self._decoders, self._preprocess, data, release)
            try:
                found = await self._search(release, path, str(file), parameters)
            finally:
                file.unlink(missing_ok=True)
            return {"query": {"image": content_hash}, **found}

        return await self._cached(("image", content_hash, release.id, parameters.k, parameters.where), search)

    async def _search(
        self, release: ServedRelease, path: Path, query: str, parameters: SearchParameters
    ) -> dict[str, Any]:
        max_results = CANDIDATES if parameters.where else parameters.k
        hits, milliseconds = await asyncio.wrap_future(self.pool.search(path, query, max_results))
        matching = [hit for hit in hits if all(_matches(hit.metadata, condition) for condition in parameters.where)]
        return {
            "release": release.id,
            "milliseconds": round(milliseconds, 3),
            "considered": len(hits),
            "hits": [
                {"id": hit.id, "score": round(hit.score, 6), "metadata": hit.metadata}
                for hit in matching[: parameters.k]
            ],
        }

    async def _cached(self, key: Hashable, search: Callable[[], Awaitable[dict[str, Any]]]) -> bytes:
        """Returns the cached response, joins an equal search that is running, or runs the search."""
        cached = self._cache.get(key)
        if cached is not None:
            return cached

        async def search_and_cache() -> dict[str, Any]:
            found = await search()
            with contextlib.suppress(ValueError):  # larger than the whole cache
                self._cache[key] = _to_json(found, cached=True)
            return found

        first = key not in self._running
        if first:
            self._running[key] = asyncio.ensure_future(search_and_cache())
            self._running[key].add_done_callback(lambda _: self._running.pop(key))
        return _to_json(await asyncio.shield(self._running[key]), cached=not first)

    def _preprocess(self, data: bytes, release: ServedRelease) -> Path:
        """Writes an image as the model sees it to a PNG file, which is small however large the image is."""
        info = json.loads(self.pool.user_info(release.first_searcher))
        try:
            pixels = Preprocessing.parse(info["preprocessing"]).pixels(data, self._max_pixels)
        except RejectedInput as error:
            status = 413 if error.reason in _TOO_LARGE else 415
            raise RequestError(status, f"the body cannot be used as an image ({error}); send another image") from None
        descriptor, name = tempfile.mkstemp(prefix="searchforge-query-", suffix=".png")
        with os.fdopen(descriptor, "wb") as file:
            Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return Path(name)


def _matches(metadata: dict[str, Any], condition: str) -> bool:
    """Returns whether metadata meets `key=value`: it has the value under the key, or a list that contains it."""
    key, _, expected = condition.partition("=")
    if key not in metadata:
        return False
    value = metadata[key]
    return any(_to_text(item) == expected for item in (value if isinstance(value, list) else [value]))


def _to_text(value: Any) -> str:
    """Returns a metadata value as it is written in a condition: `3`, `true`, `null`, or a text without quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def _to_json(found: dict[str, Any], cached: bool) -> bytes:
    return json.dumps({**found, "cached": cached}).encode()
