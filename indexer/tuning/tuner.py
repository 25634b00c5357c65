"""Finds the index parameters that reach a recall within the limits: the smallest index, then the fastest search."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from indexer.tuning.cost_model import file_bytes
from indexer.tuning.evaluator import CorpusSize, ParameterEvaluator, TradeoffPoint
from indexer.tuning.parameter_grid import code_sizes, partition_grid
from searchforge.config import IndexConfig

_EQUAL_SIZE_RATIO = 1.03
"""Ratio up to which index sizes count as equal; the fastest of equal ones is chosen."""


def tune(evaluator: ParameterEvaluator, config: IndexConfig) -> TradeoffPoint | None:
    """Evaluates parameters until the smallest index that reaches the recall within the limits is found.

    Without a required recall, finds the index of the highest recall within the limits.

    Returns:
      None if no parameters meet recall and limits.
    """
    grid = partition_grid(config, evaluator.size.items)

    def points(code_bytes: int) -> list[TradeoffPoint]:
        return [point for partitions in grid for point in evaluator.points(code_bytes, partitions)]

    sizes = code_sizes(config, evaluator.dim)
    recall = config.recall_at_10
    found: TradeoffPoint | None = None
    if recall is None:
        for size in reversed(sizes):
            if found and max(point.recall for point in points(size)) <= found.recall:
                break  # recall grows with the code size, so smaller codes reach even less
            found = best_point([*points(size), *([found] if found else [])], config, evaluator.size)
        return found
    # Recall grows with the code size. Where the smallest sufficient code exceeds the latency limit, a larger one may
    # not: it reaches the recall with fewer partitions searched.
    first = bisect.bisect_left(sizes, True, key=lambda size: any(point.recall >= recall for point in points(size)))
    for size in sizes[first:]:
        found = best_point(points(size), config, evaluator.size)
        if found:
            return found
    for size in sizes:  # `infeasible_message` shows all of them
        points(size)
    return None


def best_point(points: Iterable[TradeoffPoint], config: IndexConfig, corpus: CorpusSize) -> TradeoffPoint | None:
    """Returns the smallest, then fastest point that reaches the recall within the limits.

    Without a required recall, returns the point of the highest recall within the limits.
    """
    within = [point for point in points if not _exceeds_limits(point, config, corpus)]
    if config.recall_at_10 is None:
        return max(within, key=lambda point: (point.recall, -point.search_ms), default=None)
    sufficient = [point for point in within if point.recall >= config.recall_at_10]
    smallest = min((point.bytes_per_image for point in sufficient), default=0)
    small = [point for point in sufficient if point.bytes_per_image <= _EQUAL_SIZE_RATIO * smallest]
    return min(small, key=lambda point: point.search_ms, default=None)


def infeasible_message(tradeoff: Sequence[TradeoffPoint], config: IndexConfig, corpus: CorpusSize) -> str:
    """Returns the error for a recall that no parameters reach within the limits: nearest points and trade-off."""
    within = [point for point in tradeoff if not _exceeds_limits(point, config, corpus)]
    sufficient = [point for point in tradeoff if config.recall_at_10 is None or point.recall >= config.recall_at_10]
    goal = "satisfies" if config.recall_at_10 is None else f"reaches recall@10 of {config.recall_at_10} within"
    lines = [f"no setting of the index {goal} {_limits(config)}"]
    if within:
        most = max(within, key=lambda point: point.recall)
        lines.append(f"  highest recall within the limits: {most.summary}")
    if sufficient:
        smallest = min(sufficient, key=lambda point: (point.bytes_per_image, point.search_ms))
        fastest = min(sufficient, key=lambda point: (point.search_ms, point.bytes_per_image))
        lines += [f"  smallest index that reaches it: {smallest.summary}", f"  fastest: {fastest.summary}"]
    lines.append("trade-off, with the highest recall of each code size:")
    for size in sorted({point.parameters.code_bytes for point in tradeoff}):
        best = max((point for point in tradeoff if point.parameters.code_bytes == size), key=lambda point: point.recall)
        lines.append(f"  {best.summary}")
    lines.append("lower index.recall_at_10, or raise index.max_latency_ms, max_bytes_per_image or max_index_size")
    return "\n".join(lines)


def _limits(config: IndexConfig) -> str:
    limits = {
        "max_latency_ms": config.max_latency_ms,
        "max_bytes_per_image": config.max_bytes_per_image,
        "max_index_size": config.max_index_size,
        "code_bytes": config.code_bytes,
        "partitions": config.partitions,
        "partitions_searched": config.partitions_searched,
    }
    return ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None) or "the format's limits"


def _exceeds_limits(point: TradeoffPoint, config: IndexConfig, corpus: CorpusSize) -> bool:
    payload = round(point.bytes_per_image * corpus.items)
    limits = (
        (point.bytes_per_image, config.max_bytes_per_image),
        (point.search_ms, config.max_latency_ms),
        (file_bytes(payload, corpus.items, corpus.metadata_bytes), config.max_index_size),
    )
    return any(limit is not None and value > limit for value, limit in limits)
