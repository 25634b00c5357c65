"""Compares writing and parsing embedding records with protobuf's codec; prints medians as JSON."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from searchforge.artifacts.records import EmbeddingRecord

RECORDS = 2_000
ROUNDS = 7


def main() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((RECORDS, 128)).astype(np.float32)
    records = [EmbeddingRecord(f"{i}.jpg", v, f"/photos/{i}.jpg", "0" * 64) for i, v in enumerate(vectors)]
    data = [record.to_bytes() for record in records]
    examples = [tf.train.Example.FromString(payload) for payload in data]
    tasks: dict[str, Callable[[], object]] = {
        "write": lambda: [record.to_bytes() for record in records],
        "write_protobuf": lambda: [example.SerializeToString(deterministic=True) for example in examples],
        "parse": lambda: [EmbeddingRecord.from_bytes(payload) for payload in data],
        "parse_protobuf": lambda: [tf.train.Example.FromString(payload) for payload in data],
    }
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            seconds[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) / RECORDS * 1e6 for name, values in seconds.items()}
    ratios = {f"{name}_speedup": round(median[f"{name}_protobuf"] / median[name], 1) for name in ("write", "parse")}
    print(json.dumps({"microseconds_a_record": {k: round(v, 1) for k, v in median.items()}, **ratios}, indent=2))


if __name__ == "__main__":
    main()
