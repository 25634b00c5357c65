"""Measures the duration of the steps of a check and its peak memory.

    python -m tests.bench.check_time --workspace bench --searcher ID --captions captions.json --images photos/

Each check runs in its own process. Prints medians as JSON.
"""

from __future__ import annotations

import json
import resource
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import click


def check_once(workspace: str, searcher: str, captions: str, images: str, seed: int) -> dict[str, Any]:
    """Runs one check. The seed must be different each time, because a passed check is not repeated."""
    from searchforge.config import load_config
    from serving_check.check import check

    values = {"workspace": workspace, "data.captions": captions, "data.images": images, "check.seed": seed}
    report = check(load_config(None, values), searcher)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"passed": report["passed"], "images": report["figures"]["images"], "peak": peak, **report["seconds"]}


@click.command()
@click.option("--workspace", required=True)
@click.option("--searcher", "searchers", multiple=True, required=True)
@click.option("--captions", required=True)
@click.option("--images", required=True)
@click.option("--rounds", default=3)
def main(workspace: str, searchers: Sequence[str], captions: str, images: str, rounds: int) -> None:
    """Checks the searchers alternately and prints the medians."""
    runs: dict[str, list[dict[str, Any]]] = {searcher: [] for searcher in searchers}
    for seed in range(rounds):
        for searcher, done in runs.items():
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                done.append(pool.submit(check_once, workspace, searcher, captions, images, seed).result())
    medians = {
        searcher: {key: statistics.median(run[key] for run in done) for key in done[0]}
        for searcher, done in runs.items()
    }
    click.echo(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
