"""Answers to queries: found by the pool, filtered by metadata, shared among equal requests and kept for a while.

The Task Library cannot filter. So with conditions, the CONSIDERED best hits are asked for, and the first k that meet
the conditions are the answer: an item beyond those is not found, and `considered` in the answer says among how many
hits was chosen.

Releases never change, so that an answer stays right for as long as it is kept.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from infra.serve.byte_cache import ByteCache
from infra.serve.parameters import SearchParameters
from infra.serve.pool import Pool
from infra.serve.refusal import Refusal
from infra.serve.served import Served
from searchforge.hashing import sha256_bytes
from searchforge.preprocessing import Preprocessing, RejectedInput

CONSIDERED = 1_000
"""Hits among which conditions choose."""

_CACHE_BYTES = 32 * 2**20
_TOO_LARGE = {"too_large", "too_many_pixels"}


class Answers:
    """Of the served releases. `open` before use.

    Args:
      pool: answers the queries.
      served: releases by id.
      max_pixels: of query images; larger ones are refused before they are decoded.
    """

    def __init__(self, pool: Pool, served: Mapping[str, Served], max_pixels: int) -> None:
        self.pool = pool
        self._served = served
        self._max_pixels = max_pixels
        self._cache = ByteCache(_CACHE_BYTES)
        self._running: dict[Any, asyncio.Task[dict[str, Any]]] = {}
        self._decoders = ThreadPoolExecutor(pool.workers, thread_name_prefix="decoder")

    def close(self) -> None:
        """Ends the threads that decode images."""
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def of_text(self, text: str, parameters: SearchParameters) -> bytes:
        """Returns the answer to a text as JSON.

        Raises:
          Refusal: the release takes no texts, or the pool has no answer.
        """
        path = self._searcher(parameters.release, "text")

        async def find() -> dict[str, Any]:
            return {"query": text, **await self._search(path, text, parameters)}

        return await self._shared(("text", text, parameters), find)

    async def of_image(self, data: bytes, parameters: SearchParameters) -> bytes:
        """Returns the answer to an image file's bytes as JSON; `query` is their SHA-256.

        Raises:
          Refusal: it is not an image that can be decoded, or as of `of_text`.
        """
        path = self._searcher(parameters.release, "image")
        content_hash = sha256_bytes(data)

        async def find() -> dict[str, Any]:
            loop = asyncio.get_running_loop()
            file = await loop.run_in_executor(self._decoders, self._prepared, data, parameters.release)
            try:
                found = await self._search(path, str(file), parameters)
            finally:
                file.unlink(missing_ok=True)
            return {"query": {"image": content_hash}, **found}

        return await self._shared(("image", content_hash, parameters), find)

    def _searcher(self, release: str, kind: str) -> Path:
        searchers = self._served[release].searchers
        if kind not in searchers:
            raise Refusal(400, f"release {release} takes {' and '.join(searchers)} queries, not {kind} queries")
        return searchers[kind]

    async def _search(self, path: Path, query: str, parameters: SearchParameters) -> dict[str, Any]:
        wanted = CONSIDERED if parameters.where else parameters.k
        hits, milliseconds = await asyncio.wrap_future(self.pool.search(path, query, wanted))
        met = [hit for hit in hits if all(condition.holds(hit.metadata) for condition in parameters.where)]
        return {
            "release": parameters.release,
            "milliseconds": round(milliseconds, 3),
            "considered": len(hits),
            "hits": [
                {"id": hit.id, "score": round(hit.score, 6), "metadata": hit.metadata} for hit in met[: parameters.k]
            ],
        }

    async def _shared(self, key: Any, find: Any) -> bytes:
        """Returns the kept answer, or the one that an equal request waits for, or a found one."""
        kept = self._cache.get(key)
        if kept is not None:
            return kept
        first = key not in self._running
        if first:
            self._running[key] = asyncio.ensure_future(find())
            self._running[key].add_done_callback(lambda _: self._running.pop(key))
        found = await asyncio.shield(self._running[key])
        if not first:
            return _encoded(found, cached=True)
        self._cache.put(key, _encoded(found, cached=True))
        return _encoded(found, cached=False)

    def _prepared(self, data: bytes, release: str) -> Path:
        """Writes what the model sees of an image, without loss: small, however large the image is."""
        info = json.loads(self.pool.user_info(self._served[release].first_searcher))
        try:
            pixels = Preprocessing.parse(info["preprocessing"]).pixels(data, self._max_pixels)
        except RejectedInput as error:
            status = 413 if error.reason in _TOO_LARGE else 415
            raise Refusal(status, f"the body cannot be used as an image ({error}); send another one") from None
        descriptor, name = tempfile.mkstemp(prefix="searchforge-query-", suffix=".png")
        with os.fdopen(descriptor, "wb") as file:
            Image.fromarray(pixels).save(file, "PNG", compress_level=1)
        return Path(name)


def _encoded(found: dict[str, Any], cached: bool) -> bytes:
    return json.dumps({**found, "cached": cached}).encode()
