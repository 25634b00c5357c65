"""Estimates a run from a sample of its corpus: how long the whole takes on some workers, how many bytes come out."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from beam_jobs.corpus.items import Item
from beam_jobs.embed import Method, list_corpus
from beam_jobs.embedding.embedder import Embedder
from beam_jobs.planning.shards import Task
from searchforge.artifacts.manifest import Modality
from searchforge.artifacts.records import TFRECORD_FRAMING
from searchforge.config import Config
from searchforge.console import progress

_WARM_UP = 8
"""Items that are embedded before the clock starts: the first calls of an encoder allocate its memory."""


@dataclass(frozen=True)
class Estimate:
    """What a sample says of the whole.

    Attributes:
      items: of the corpus.
      sample: how many of them were embedded.
      threads: of each worker.
      per_second: items a second of one worker.
      seconds: of the whole corpus on `workers`, without starting them, where nothing is known of an earlier run.
      bytes_read, bytes_written: by the whole corpus.
      reject_fraction: of the sample.
    """

    items: int
    sample: int
    workers: int
    threads: int
    backend: str
    per_second: float
    seconds: float
    bytes_read: int
    bytes_written: int
    reject_fraction: float


def estimate(config: Config, encoder: str, modality: Modality, workers: int, sample: int, seed: int = 0) -> Estimate:
    """Lists the corpus, embeds a seeded sample of it on this machine, and writes nothing.

    Args:
      workers: machines (or processes) like this one.
      sample: items to embed.

    Raises:
      UsageError: the corpus is empty, or the encoder does not exist.
    """
    method = Method(config, encoder, modality)
    items, chosen = _sample(config, modality, sample + _WARM_UP, seed)
    progress.say(f"{items} {modality} listed; embedding {len(chosen)} of them to measure")
    options = method.options(folder="")
    tasks = [Task((item,)) for item in chosen]
    embedder = Embedder(options)
    embedder.embed(tasks[:_WARM_UP])
    measured = tasks[_WARM_UP:] or tasks
    start = time.perf_counter()
    outcome = embedder.embed(measured)
    seconds = time.perf_counter() - start
    per_second = len(measured) / seconds
    share = items / len(measured)
    written = sum(len(record.to_bytes()) + TFRECORD_FRAMING for record in outcome.records)
    return Estimate(
        items=items,
        sample=len(measured),
        workers=workers,
        threads=embedder.threads,
        backend=options.backend,
        per_second=round(per_second, 1),
        seconds=round(items / per_second / workers, 1),
        bytes_read=round(outcome.bytes_read * share),
        bytes_written=round(written * share),
        reject_fraction=len(outcome.rejects) / len(measured),
    )


def summary(report: Estimate) -> str:
    """One paragraph for people."""
    minutes, seconds = divmod(round(report.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{report.items} items on {report.workers} workers of {report.threads} threads ({report.backend}): about "
        f"{hours} h {minutes:02d} min {seconds:02d} s, at {report.per_second:.0f} items/s a worker as measured on "
        f"{report.sample} items; {report.bytes_read / 1e6:,.1f} MB read, {report.bytes_written / 1e6:,.1f} MB written; "
        f"{report.reject_fraction:.1%} of the sample were rejected"
    )


def _sample(config: Config, modality: Modality, size: int, seed: int) -> tuple[int, list[Item]]:
    """Returns the number of items and a uniform sample of them (reservoir sampling: Vitter 1985, algorithm R)."""
    generator, count = random.Random(seed), 0
    chosen: list[Item] = []
    for item in list_corpus(config, modality):
        count += 1
        if len(chosen) < size:
            chosen.append(item)
        elif (place := generator.randrange(count)) < size:
            chosen[place] = item
    generator.shuffle(chosen)
    return count, chosen
