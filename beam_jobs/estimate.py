"""Estimates the duration and the output size of an embedding run from a sample of its corpus."""

from __future__ import annotations

import logging
import random
import time
from dataclasses import dataclass

from beam_jobs.corpus.items import Item
from beam_jobs.embed import EmbedMethod, list_corpus
from beam_jobs.embedding.embedder import Embedder
from beam_jobs.planning.shards import Task
from searchforge.artifacts.manifest import Modality
from searchforge.artifacts.records import TFRECORD_FRAMING
from searchforge.config import Config

logger = logging.getLogger(__name__)

_WARM_UP = 8
"""Number of items embedded before timing starts, because an encoder allocates its memory in its first calls."""


@dataclass(frozen=True)
class Estimate:
    """Extrapolation from a sample to the whole corpus.

    Attributes:
      items: Number of items in the corpus.
      sample: Number of items that were measured.
      threads: Number of threads per worker.
      per_second: Items per second and worker.
      seconds: Duration on `workers` workers, excluding their start, if no earlier run can be reused.
      bytes_read, bytes_written: Totals for the corpus.
      reject_fraction: Fraction of the sample that was rejected.
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
    """Lists the corpus and embeds a random sample of it on this machine, without writing anything.

    Args:
      workers: Number of machines, or processes, to extrapolate to; they are assumed to be like this one.
      sample: Number of items to embed.

    Raises:
      UsageError: The corpus is empty, or the encoder does not exist.
    """
    method = EmbedMethod(config, encoder, modality)
    items, chosen = _sample(config, modality, sample + _WARM_UP, seed)
    logger.info(f"{items} {modality} listed; embedding {len(chosen)} of them to measure")
    options = method.options(folder="")
    tasks = [Task((item,)) for item in chosen]
    embedder = Embedder(options)
    embedder.embed(tasks[:_WARM_UP])
    measured = tasks[_WARM_UP:] or tasks
    start = time.perf_counter()
    outcome = embedder.embed(measured)
    seconds = time.perf_counter() - start
    per_second = len(measured) / seconds
    scale = items / len(measured)
    written = sum(len(record.to_bytes()) + TFRECORD_FRAMING for record in outcome.records)
    return Estimate(
        items=items,
        sample=len(measured),
        workers=workers,
        threads=embedder.threads,
        backend=options.backend,
        per_second=round(per_second, 1),
        seconds=round(items / per_second / workers, 1),
        bytes_read=round(outcome.bytes_read * scale),
        bytes_written=round(written * scale),
        reject_fraction=len(outcome.rejects) / len(measured),
    )


def summary(report: Estimate) -> str:
    """Returns the estimate as one human-readable paragraph."""
    minutes, seconds = divmod(round(report.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{report.items} items on {report.workers} workers of {report.threads} threads ({report.backend}): about "
        f"{hours} h {minutes:02d} min {seconds:02d} s, at {report.per_second:.0f} items/s per worker as measured on "
        f"{report.sample} items; {report.bytes_read / 1e6:,.1f} MB read, {report.bytes_written / 1e6:,.1f} MB written; "
        f"{report.reject_fraction:.1%} of the sample was rejected"
    )


def _sample(config: Config, modality: Modality, size: int, seed: int) -> tuple[int, list[Item]]:
    """Returns the number of items and a uniform sample of them (reservoir sampling: Vitter 1985, algorithm R)."""
    generator, count = random.Random(seed), 0
    chosen: list[Item] = []
    for item in list_corpus(config, modality):
        count += 1
        if len(chosen) < size:
            chosen.append(item)
        elif (slot := generator.randrange(count)) < size:
            chosen[slot] = item
    generator.shuffle(chosen)
    return count, chosen
