"""Load test of `searchforge serve` with a published release; prints JSON.

python -m tests.bench.serve_load --workspace W --captions C.json [--clients 1 --clients 16 ...] [--seconds 10]

The server runs in a child process and the clients in this one. Every client sends its next request as soon as it has
a response. `distinct` queries are all different, so that each reaches the Task Library; `repeated` queries cycle
through a few texts whose results the server caches. Both are measured in the same run, for each number of clients.
`lost` counts requests that received neither a response to their own query nor a 503; `refused` counts responses with
status 503.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import click

REPEATED = 20
"""Number of different repeated queries."""

TIMEOUT = aiohttp.ClientTimeout(total=60)


@click.command()
@click.option("--workspace", required=True, help="Workspace with a release.")
@click.option("--release", help="Id; default: the live release.")
@click.option("--captions", required=True, help="COCO captions to use as queries.")
@click.option("--clients", multiple=True, type=int, default=(1, 16, 64, 512), show_default=True)
@click.option("--seconds", type=float, default=10.0, show_default=True, help="Duration of each measurement.")
def main(workspace: str, release: str | None, captions: str, clients: tuple[int, ...], seconds: float) -> None:
    texts = [entry["caption"] for entry in json.loads(Path(captions).read_text())["annotations"]]
    command = [sys.executable, "-m", "infra", "serve", "--workspace", workspace, "--port", "0", "--json"]
    server = subprocess.Popen(
        [*command, *(("--release", release) if release else ())], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        started = json.loads(server.stdout.readline())
        measured = asyncio.run(_measure(started["url"], _distinct(texts), texts[:REPEATED], clients, seconds))
    finally:
        server.terminate()
        server.wait()
    figures = {"release": started["releases"][0], "cores": len(os.sched_getaffinity(0)), "exit_code": server.returncode}
    print(json.dumps({**figures, "measured": measured}, indent=2))


def _distinct(texts: list[str]) -> Iterator[str]:
    """Yields texts without repeating any."""
    return (f"{text} {turn}" if turn else text for turn in itertools.count() for text in dict.fromkeys(texts))


async def _measure(
    url: str, distinct: Iterator[str], repeated: list[str], clients: tuple[int, ...], seconds: float
) -> list[dict[str, Any]]:
    measured = []
    async with aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0)) as session:
        await _load(session, url, itertools.cycle(repeated), 4, 2.0)  # warms up connections, imports and the cache
        for count in clients:
            for kind, queries in (("distinct", distinct), ("repeated", itertools.cycle(repeated))):
                figures = await _load(session, url, queries, count, seconds)
                measured.append({"clients": count, "queries": kind, **figures})
    return measured


async def _load(
    session: aiohttp.ClientSession, url: str, queries: Iterator[str], clients: int, seconds: float
) -> dict[str, Any]:
    """Sends queries from a number of concurrent clients for some seconds; returns figures."""
    milliseconds: list[float] = []
    task_library: list[float] = []
    outcomes: Counter[str] = Counter()
    start = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() - start < seconds:
            query = next(queries)
            sent = time.perf_counter()
            try:
                async with session.get(f"{url}search", params={"q": query}) as response:
                    content = await response.json()
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                outcomes[type(error).__name__] += 1
                continue
            if response.status == 503:
                outcomes["refused"] += 1
                await asyncio.sleep(float(response.headers["Retry-After"]))
            elif response.status == 200 and content["query"] == query.strip() and content["hits"]:
                outcomes["answered"] += 1
                milliseconds.append((time.perf_counter() - sent) * 1e3)
                task_library.append(content["milliseconds"])
            else:
                outcomes[f"status {response.status}"] += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    elapsed = time.perf_counter() - start
    cuts = statistics.quantiles(milliseconds, n=100)
    return {
        "requests_per_second": round(outcomes["answered"] / elapsed, 1),
        "p50_ms": round(cuts[49], 2),
        "p99_ms": round(cuts[98], 2),
        "task_library_p50_ms": round(statistics.median(task_library), 2),
        "answered": outcomes.pop("answered"),
        "refused": outcomes.pop("refused", 0),
        "lost": sum(outcomes.values()),
        "outcomes": dict(outcomes),
    }


if __name__ == "__main__":
    main()
