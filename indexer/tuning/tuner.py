"""Finds the settings of an index that reach a recall: the smallest index, then the fastest search.

Each setting is tried on the items that matter to the tuning queries: the exact best CANDIDATES of each, and only these
are encoded. An item further down hardly ever gets past those before it, so recall among candidates is recall in the
whole corpus but for a little, which the build makes up for once it has the whole index (indexer.build).
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from indexer.corpus.corpus_scan import Answers
from indexer.quantization.block_allocation import block_widths
from indexer.quantization.codebooks import decode, train_codebooks
from indexer.quantization.partitions import Assigner, train_partitions
from indexer.quantization.quantizer import Quantizer
from indexer.quantization.query_direction import Leaning
from indexer.quantization.query_map import inverse_transpose
from indexer.tuning.cost_model import payload_bytes, search_ms, with_metadata
from indexer.tuning.settings import Setting, default_partitions
from searchforge.config import IndexConfig

CANDIDATES = 100
"""Exact answers of each tuning query among which settings are tried."""

K = 10
"""The promise is of recall@10."""

SCANNED_WHOLE = 5_000
"""A corpus of at most so many items may do without partitions."""

_LEAST_MEAN = 4
"""Items in a partition, on average, at least."""

_GRID = (1.0, 4.0)
"""Numbers of partitions that are tried, as multiples of the square root of the corpus' size."""

_RATIO = 1.1
"""Of one number of partitions searched that is tried to the next."""

_SMALL = 1.03
"""Sizes of an index that count as equal, as a ratio: among them the fastest is taken."""

_SIZES = (8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128, 160, 192, 256)
"""Bytes of a code that are tried."""

_CODEBOOK_SAMPLE = 50_000
"""Vectors on which codebooks are trained; the final ones on all of the sample gain next to nothing."""

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Point:
    """One point of the trade-off curve.

    Attributes:
      recall: recall@10 among candidates, mean over the tuning queries.
      partition_recall: share of the exact top 10 that lies in the partitions searched.
      bytes_per_image: of the index without metadata.
      search_ms: expected, see indexer.tuning.cost_model.
    """

    setting: Setting
    recall: float
    partition_recall: float
    bytes_per_image: float
    search_ms: float

    @property
    def summary(self) -> str:
        """For people."""
        return (
            f"recall@10 {self.recall:.3f}, {self.bytes_per_image:.0f} bytes an image, {self.search_ms:.2f} ms a search "
            f"({self.setting.summary})"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            **self.setting.to_json(),
            "recall_at_10": round(self.recall, 4),
            "partition_recall_at_10": round(self.partition_recall, 4),
            "bytes_per_image": round(self.bytes_per_image, 2),
            "search_ms": round(self.search_ms, 3),
        }


@dataclass(frozen=True)
class Size:
    """Of a corpus: its items, and the bytes of their metadata."""

    items: int
    metadata_bytes: int


@dataclass(frozen=True)
class Partitioning:
    """Partitions as the tuner tries them.

    Attributes:
      clusters: [partitions, dim] float32.
      ranks: [m, CANDIDATES], place of each candidate's partition on its query's route.
      scored: [partitions], mean number of items in the first 1, 2, ... partitions of a route.
    """

    clusters: Matrix
    ranks: npt.NDArray[np.int64]
    scored: npt.NDArray[np.float64]


class Explorer:
    """Tries settings; what is trained for one is kept for the next.

    Args:
      sample: [n, dim] float32, vectors of the corpus.
      transform, leaning: of the quantizer.
      queries: [m, dim] float32, the tuning queries.
      answers: their exact answers.
      size: of the corpus.
    """

    def __init__(
        self,
        sample: Matrix,
        transform: Matrix,
        leaning: Leaning,
        queries: Matrix,
        answers: Answers,
        size: Size,
        config: IndexConfig,
        threads: int,
    ) -> None:
        self._sample, self._transform, self._leaning = sample, transform, leaning
        self._mapped = sample[:_CODEBOOK_SAMPLE] @ transform.T
        self._variances = np.var(sample @ transform.T, axis=0, dtype=np.float64)
        self._queries, self._answers = queries, answers
        self.size, self._config, self._threads = size, config, threads
        self._known = answers.items >= 0
        _, first, place = np.unique(answers.items, return_index=True, return_inverse=True)
        self._place = place.reshape(answers.items.shape)
        self._candidates = answers.vectors.reshape(-1, answers.vectors.shape[-1])[first]
        self._partitionings: dict[int, Partitioning] = {}
        self._codebooks: dict[int, tuple[Matrix, ...]] = {}
        self._scores: dict[int, Matrix] = {}
        self._points: dict[tuple[int, int], list[Point]] = {}

    @property
    def dim(self) -> int:
        return int(self._sample.shape[1])

    def partitioning(self, partitions: int) -> Partitioning:
        """Returns partitions trained on the sample, and where the candidates lie in them."""
        if partitions not in self._partitionings:
            config = self._config
            iterations = max(1, config.training_iterations // 2)  # clusters settle sooner than codebooks
            clusters = train_partitions(self._sample, partitions, iterations, config.seed)
            assigner = Assigner(clusters)
            sizes = np.bincount(assigner.assign(self._sample), minlength=partitions)
            route = np.argsort(-(self._queries @ clusters.T), axis=1, kind="stable")
            ranks = np.empty_like(route)
            np.put_along_axis(ranks, route, np.arange(partitions)[None, :], axis=1)
            own = assigner.assign(self._candidates).astype(np.int64)[self._place]
            scored = np.cumsum(sizes[route], axis=1).mean(axis=0) * (self.size.items / len(self._sample))
            self._partitionings[partitions] = Partitioning(clusters, np.take_along_axis(ranks, own, axis=1), scored)
        return self._partitionings[partitions]

    def quantizer(self, setting: Setting) -> Quantizer:
        """Returns the quantizer of a setting."""
        return self._quantizer(setting.code_bytes, self.partitioning(setting.partitions).clusters)

    def _quantizer(self, code_bytes: int, clusters: Matrix) -> Quantizer:
        if code_bytes not in self._codebooks:
            widths = block_widths(self._variances, code_bytes)
            iterations, seed = self._config.training_iterations, self._config.seed
            books = train_codebooks(self._mapped, widths, iterations, seed, self._threads)
            self._codebooks[code_bytes] = tuple(books)
        return Quantizer(
            self._transform, clusters, self._codebooks[code_bytes], self._leaning, self._config.anisotropic_weight
        )

    @property
    def curve(self) -> list[Point]:
        """Every point tried, ascending by size, partitions and partitions searched."""
        return [point for key in sorted(self._points) for point in self._points[key]]

    def points(self, code_bytes: int, partitions: int) -> list[Point]:
        """Returns a point for every number of partitions searched that is worth trying, ascending."""
        if (code_bytes, partitions) not in self._points:
            self._points[code_bytes, partitions] = self._try(code_bytes, partitions)
        return self._points[code_bytes, partitions]

    def _try(self, code_bytes: int, partitions: int) -> list[Point]:
        partitioning = self.partitioning(partitions)
        scores, ranks = self._scored(code_bytes), partitioning.ranks
        exact = self._answers.scores
        count = min(K, int(self._known[0].sum()))
        good = self._known & (exact >= exact[:, count - 1 : count] - 1e-6)
        points = []
        for searched in searched_steps(self._config, partitions):
            reached = np.where(self._known & (ranks < searched), scores, -np.inf)
            best = np.argpartition(-reached, min(count, reached.shape[1]) - 1, axis=1)[:, :count]
            found = np.take_along_axis(good & np.isfinite(reached), best, axis=1).sum(axis=1) / count
            setting = Setting(code_bytes, partitions, searched, self._config.lut_type)
            within = (good & (ranks < searched)).sum(axis=1).clip(max=count) / count
            points.append(
                Point(
                    setting,
                    float(found.mean()),
                    float(within.mean()),
                    payload_bytes(self.size.items, self.dim, setting) / self.size.items,
                    search_ms(self.dim, setting, float(partitioning.scored[searched - 1])),
                )
            )
        return points

    def _scored(self, code_bytes: int) -> Matrix:
        """Returns the scores [m, CANDIDATES] that codes give the candidates."""
        if code_bytes not in self._scores:
            quantizer = self._quantizer(code_bytes, self._sample[:0])
            with ThreadPoolExecutor(self._threads) as pool:
                parts = np.array_split(self._candidates, 4 * self._threads)
                codes = np.concatenate(list(pool.map(lambda part: quantizer.codes(part), parts)))
            decoded = decode(codes, quantizer.codebooks)
            mapped = self._queries @ inverse_transpose(self._transform).T
            scores = np.empty(self._place.shape, np.float32)
            for row, place in enumerate(self._place):
                scores[row] = decoded[place] @ mapped[row]
            self._scores[code_bytes] = scores
        return self._scores[code_bytes]


def explore(explorer: Explorer, config: IndexConfig) -> Point | None:
    """Tries settings until the smallest index is found that reaches the recall within the limits.

    Without a recall to reach, it is the index of the highest recall within the limits.

    Returns:
      None where no setting meets recall and limits.
    """
    grid = partition_grid(config, explorer.size.items)

    def points(code_bytes: int) -> list[Point]:
        return [point for partitions in grid for point in explorer.points(code_bytes, partitions)]

    sizes = code_sizes(config, explorer.dim)
    recall = config.recall_at_10
    found: Point | None = None
    if recall is None:
        for size in reversed(sizes):
            if found and max(point.recall for point in points(size)) <= found.recall:
                break  # recall grows with the size: smaller ones have less still
            found = best_point([*points(size), *([found] if found else [])], config, explorer.size)
        return found
    # Recall grows with the size, but the smallest that reaches it may be over a limit: a larger one searches less.
    first = bisect.bisect_left(sizes, True, key=lambda size: any(point.recall >= recall for point in points(size)))
    for size in sizes[first:]:
        found = best_point(points(size), config, explorer.size)
        if found:
            return found
    for size in sizes:  # for `nearest_misses`
        points(size)
    return None


def best_point(points: Iterable[Point], config: IndexConfig, corpus: Size) -> Point | None:
    """Returns the smallest, then fastest point that reaches the recall within the limits; without one, the highest."""
    within = [point for point in points if not _exceeded(point, config, corpus)]
    if config.recall_at_10 is None:
        return max(within, key=lambda point: (point.recall, -point.search_ms), default=None)
    meeting = [point for point in within if point.recall >= config.recall_at_10]
    smallest = min((point.bytes_per_image for point in meeting), default=0)
    small = [point for point in meeting if point.bytes_per_image <= _SMALL * smallest]
    return min(small, key=lambda point: point.search_ms, default=None)


def nearest_misses(curve: Sequence[Point], config: IndexConfig, corpus: Size) -> str:
    """Says which settings come nearest where none meets recall and limits, and what would have to give."""
    within = [point for point in curve if not _exceeded(point, config, corpus)]
    reaching = [point for point in curve if config.recall_at_10 is None or point.recall >= config.recall_at_10]
    wanted = "" if config.recall_at_10 is None else f"reaches recall@10 of {config.recall_at_10} "
    lines = [f"no setting of the index {wanted or 'is '}within {_limits(config)}"]
    if within:
        most = max(within, key=lambda point: point.recall)
        lines.append(f"  the highest recall within these limits: {most.summary}")
    if reaching:
        smallest = min(reaching, key=lambda point: (point.bytes_per_image, point.search_ms))
        fastest = min(reaching, key=lambda point: (point.search_ms, point.bytes_per_image))
        lines += [f"  the smallest that reaches it: {smallest.summary}", f"  the fastest: {fastest.summary}"]
    sizes = sorted({point.setting.code_bytes for point in curve})
    lines.append("trade-off, the highest recall of each size and what it takes:")
    for size in sizes:
        best = max((point for point in curve if point.setting.code_bytes == size), key=lambda point: point.recall)
        lines.append(f"  {best.summary}")
    lines.append("set index.recall_at_10 lower, or raise index.max_latency_ms, max_bytes_per_image or max_index_size")
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
    return ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None) or "the format"


def _exceeded(point: Point, config: IndexConfig, corpus: Size) -> bool:
    payload = round(point.bytes_per_image * corpus.items)
    limits = (
        (point.bytes_per_image, config.max_bytes_per_image),
        (point.search_ms, config.max_latency_ms),
        (with_metadata(payload, corpus.items, corpus.metadata_bytes), config.max_index_size),
    )
    return any(limit is not None and value > limit for value, limit in limits)


def code_sizes(config: IndexConfig, dim: int) -> list[int]:
    """Returns the bytes of a code that are tried, ascending."""
    return [config.code_bytes] if config.code_bytes else [*(size for size in _SIZES if size < dim), dim]


def partition_grid(config: IndexConfig, items: int) -> list[int]:
    """Returns the numbers of partitions that are tried: at least as many as are to be searched, where that is given."""
    if config.partitions:
        return [config.partitions]
    most = max(1, min(items, config.training_sample) // _LEAST_MEAN)
    grid = {min(most, max(1, int(factor * default_partitions(items)))) for factor in _GRID}
    grid |= {1} if items <= SCANNED_WHOLE else set()
    least = min(config.partitions_searched or 1, max(grid))
    return sorted(partitions for partitions in grid if partitions >= least)


def searched_steps(config: IndexConfig, partitions: int) -> list[int]:
    """Returns the numbers of partitions searched that are tried, ascending."""
    if config.partitions_searched:
        return [min(config.partitions_searched, partitions)]
    steps = [1]
    while steps[-1] < partitions:
        steps.append(min(partitions, max(steps[-1] + 1, int(steps[-1] * _RATIO))))
    return steps
