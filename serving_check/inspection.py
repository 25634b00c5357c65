"""Inspects the searchers of an index: evaluates the gates of every check and measures all figures."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.encoder import TFLITE_FILES, EncoderInfo, InputKind
from searchforge.artifacts.manifest import Manifest
from searchforge.artifacts.searcher import SEARCHERS
from searchforge.config import CheckConfig
from searchforge.errors import SearchforgeError
from serving_check.formats.index_file import Index, read_index, require_parameters
from serving_check.formats.searcher_file import SearcherFile, open_file
from serving_check.gate import Gate, at_least, no_faults
from serving_check.gates import structure
from serving_check.gates.fidelity import (
    MAX_CENTROID_ERROR,
    MAX_CODE_ERROR,
    MAX_QUERY_ERROR,
    CodeErrors,
    Fidelity,
    query_errors,
)
from serving_check.gates.hostile_queries import run_hostile_queries
from serving_check.measurement import retrieval
from serving_check.measurement.corpus import Corpus, metadata_digest
from serving_check.measurement.examples import choose_examples
from serving_check.measurement.queries import NO_ITEM, Queries
from serving_check.measurement.search import Searcher
from serving_check.schema import WITHOUT_ANSWERS, Example, Histogram, HostileQuery

logger = logging.getLogger(__name__)

MIN_SELF_HITS = 0.8
"""Minimum share of the corpus' images, or texts, that find themselves; fewer indicate shuffled ids."""

MIN_COSINE = 0.98
"""Minimum median cosine between a corpus item embedded again and its stored embedding; TFLite rounds a little."""

MIN_CAPTIONS = 200
"""Number of text queries that suffices to measure recall; with fewer, images of the corpus are the queries."""

_COMPARED_EMBEDDINGS = 128
"""Number of queries for which the searcher's embeddings are compared with those of the bundle's encoder."""

_RETRIEVAL = ("r_at_", "exact_r_at_", "median_rank")
"""Prefixes of figures that mean nothing if the texts of a text corpus are their own queries."""

_THREADS_QUERIES = 50
_EXAMPLES: dict[InputKind, int] = {"text": 12, "image": 2}
_PREFIX: dict[InputKind, str] = {"text": "", "image": "image_"}

_GATES = {
    "files": "every searcher is the file that the build committed",
    "opens": "the Task Library opens every searcher",
    "model": "every model is the bundle's encoder with one more layer",
    "metadata": "TFLite metadata, normalization and vocabulary are those of the encoders",
    "index": "every checksum, offset and length of the index is valid, and every searcher contains the same index",
    "fingerprint": "index, build, embeddings and bundle are of the same encoder",
    "items": "the index contains every item of the manifest once, and no others",
    "item_metadata": "every item's metadata equals that of its embedding record",
    "codes": "every code represents its own item's embedding",
    "partitions": "every centroid is close to the items of its partition",
    "encoders": "every searcher embeds queries like the encoder of the corpus",
    "embeddings": "items embedded again match their stored embeddings",
    "answers": "every query was answered",
    "hostile_queries": "hostile queries are answered, or refused with a reason",
    "known_ids": "every hit is an item of the manifest",
}
"""Gates that no configuration disables, in the order of display, each with its detail when it passes."""


@dataclass(frozen=True)
class CheckedArtifacts:
    """A searcher and what it was made from.

    Attributes:
      folder: Folder of the searcher.
      encoders: Folder of the encoder bundle.
      build: Contents of build.json.
    """

    folder: Path
    encoders: Path
    build: Mapping[str, Any]
    manifest: Manifest
    bundle: EncoderInfo
    corpus: Corpus
    config: CheckConfig


class Inspection:
    """Collects faults and figures of all searchers. A fault of one does not end the inspection.

    Attributes:
      figures, intervals, latency, sizes, hostile, examples: See serving_check.schema.Report.
    """

    def __init__(self, artifacts: CheckedArtifacts, scratch: Path) -> None:
        """`scratch` is an empty folder for temporary files."""
        self._artifacts, self._scratch = artifacts, scratch
        self._faults: dict[str, list[str]] = {name: [] for name in _GATES}
        self._details = dict(_GATES)
        self._queries: dict[InputKind, Queries] = {}
        self._files: dict[InputKind, SearcherFile] = {}
        self._index: Index | None = None
        self._query_maps: dict[InputKind, npt.NDArray[np.float32]] = {}
        self._transforms: dict[InputKind, npt.NDArray[np.float32]] = {}
        self.figures: dict[str, Any] = {}
        self.intervals: dict[str, tuple[float, float]] = {}
        self.latency: dict[InputKind, Histogram] = {}
        self.sizes: dict[str, dict[str, int]] = {}
        self.hostile: list[HostileQuery] = []
        self.examples: list[Example] = []

    def inspect_files(self) -> None:
        """Inspects everything that can be verified without running a searcher."""
        artifacts, faults = self._artifacts, self._faults
        searchers, encoders = ([names[kind] for kind in artifacts.bundle.kinds] for names in (SEARCHERS, TFLITE_FILES))
        faults["files"] += structure.file_faults(artifacts.folder, searchers, artifacts.build)
        faults["fingerprint"] += structure.bundle_faults(artifacts.encoders, encoders, artifacts.bundle)
        faults["fingerprint"] += structure.encoder_faults(artifacts.build, artifacts.manifest, artifacts.bundle)
        for kind in artifacts.bundle.kinds:
            self._inspect_file(kind, artifacts.folder / SEARCHERS[kind], artifacts.encoders / TFLITE_FILES[kind])
        if self._index is not None:
            rows = self._inspect_items(self._index)
            if len(rows) and not (rows == NO_ITEM).any():
                self._inspect_fidelity(self._index, artifacts.corpus.vectors[rows])

    def _inspect_file(self, kind: InputKind, path: Path, encoder_path: Path) -> None:
        faults = self._faults
        try:
            searcher, encoder = open_file(path), open_file(encoder_path)
        except (OSError, ValueError) as error:
            faults["model"].append(f"{path.name}: {error}")
            return
        earlier = [file.index for file in self._files.values()]
        self._files[kind] = searcher
        if searcher.index is None:
            faults["index"].append(f"{path.name} contains no index")
        elif not earlier:
            try:
                self._index = read_index(searcher.index)
                require_parameters(self._index, self._artifacts.build["parameters"])
            except ValueError as error:
                faults["index"].append(f"{path.name}: {error}")
        elif earlier != [searcher.index]:
            faults["index"].append(f"{path.name} contains a different index from the other searcher's")
        dim = self._index.centroids.shape[1] if self._index else 0
        preprocessing = self._artifacts.bundle.preprocessing
        for gate, found in (
            ("model", structure.model_faults(searcher, encoder, dim)),
            ("metadata", structure.metadata_faults(searcher, encoder, kind, preprocessing)),
        ):
            faults[gate] += [f"{path.name}: {fault}" for fault in found]
        if (query_map := structure.query_map(searcher, encoder)) is not None:
            self._query_maps[kind] = query_map
        self.sizes[path.name] = _sizes(searcher, self._index)

    def _inspect_items(self, index: Index) -> npt.NDArray[np.int64]:
        """Returns the corpus row [items] of each item of the index; NO_ITEM if it has none."""
        artifacts, faults = self._artifacts, self._faults
        corpus = artifacts.corpus
        faults["fingerprint"] += structure.user_info_faults(
            index.user_info, artifacts.build, artifacts.manifest, artifacts.bundle
        )
        count = max(1, len(corpus.ids))
        payload = index.sizes["codes"] + index.sizes["centroids_and_codebooks"] + len(index.user_info)
        self.figures["bytes_per_image"] = payload / count
        rows = np.full(len(index.metadata), NO_ITEM, np.int64)
        indexed: Counter[str] = Counter()
        for item, text in enumerate(index.metadata):
            try:
                metadata = json.loads(text)
                id = str(metadata["id"])
            except (ValueError, KeyError, TypeError, RecursionError):
                start = text[:80].decode(errors="replace")
                faults["item_metadata"].append(
                    f"the metadata of an item is {start!r}, expected a JSON object with an id"
                )
                continue
            indexed[id] += 1
            rows[item] = row = corpus.row_of.get(id, NO_ITEM)
            if row != NO_ITEM and metadata_digest(metadata) != corpus.metadata[row]:
                faults["item_metadata"].append(f"the metadata of item {id!r} differs from its embedding record")
        for problem, ids in (
            ("are in the manifest, but not in the index", corpus.row_of.keys() - indexed.keys()),
            ("are in the index, but not in the manifest", indexed.keys() - corpus.row_of.keys()),
            ("are in the index more than once", {id for id, times in indexed.items() if times > 1}),
        ):
            if ids:
                faults["items"].append(f"{len(ids)} items {problem}, for example {min(ids)!r}")
        return rows

    def _inspect_fidelity(self, index: Index, vectors: npt.NDArray[np.float32]) -> None:
        """Compares codes and centroids with the items' vectors, and the query maps of all searchers with the codes."""
        fidelities: dict[InputKind, Fidelity] = {}
        errors: dict[InputKind, CodeErrors] = {}
        for kind, query_map in self._query_maps.items():
            twin = next((other for other in errors if np.array_equal(self._query_maps[other], query_map)), None)
            if twin is not None:
                fidelities[kind], errors[kind] = fidelities[twin], errors[twin]
                continue
            try:
                fidelities[kind] = Fidelity(index, vectors, query_map)
            except ValueError as error:
                self._faults["encoders"].append(f"{SEARCHERS[kind]}: {error}")
            else:
                errors[kind] = fidelities[kind].codes(self._artifacts.config.seed)
        if not errors:
            return
        self._transforms = {kind: fidelity.transform for kind, fidelity in fidelities.items()}
        best = min(errors, key=lambda kind: errors[kind].median_loss)
        self._faults["encoders"] += [
            f"{SEARCHERS[kind]} maps queries for a different index; build the index again"
            for kind in errors
            if errors[kind] is not errors[best]
        ]
        self._record_codes(errors[best], index)
        self._record_centroids(fidelities[best].centroids())

    def _record_codes(self, errors: CodeErrors, index: Index) -> None:
        self.figures["code_error"] = errors.median_loss
        self._details["codes"] += f"; the median item loses {errors.median_loss:.2g} of its squared length"
        wrong = np.flatnonzero(~(errors.items <= MAX_CODE_ERROR))
        if len(wrong):
            id = json.loads(index.metadata[wrong[0]])["id"]
            self._faults["codes"].append(
                f"{len(wrong)} of {len(errors.items)} codes do not represent their item, for example that of {id!r}"
            )
        self._faults["codes"] += [
            f"the codebook of block {block} represents nothing" for block in errors.useless_blocks
        ]

    def _record_centroids(self, errors: npt.NDArray[np.float64]) -> None:
        if len(wrong := np.flatnonzero(~(errors <= MAX_CENTROID_ERROR))):
            self._faults["partitions"].append(
                f"{len(wrong)} of {len(errors)} centroids are far from the items of their partition, for example that "
                f"of partition {wrong[0]}"
            )

    def inspect_searcher(self, kind: InputKind, queries: Queries, probes: list[str]) -> None:
        """Opens a searcher and runs queries, first ordinary ones, then hostile ones.

        Args:
          queries: Queries with known answers.
          probes: Texts or images without known answers, which fill up if there are too few queries.
        """
        name = SEARCHERS[kind]
        path, encoder_path = self._artifacts.folder / name, self._artifacts.encoders / TFLITE_FILES[kind]
        prefix, faults = _PREFIX[kind], self._faults
        self._queries[kind] = queries
        logger.info(f"  {name}: {len(queries)} queries with known answers")
        with self._recording_errors(name), Searcher(path, kind) as searcher:
            with self._recording_errors(name):
                self.figures[f"{prefix}load_seconds"] = searcher.load_seconds
                values = queries.values or probes
                results = retrieval.run_queries(searcher, encoder_path, values, f"{kind} searcher")
                self.figures[f"{prefix}memory_bytes"] = searcher.memory_bytes()
                self._record_results(kind, queries, results)
                others = probes[: max(0, _COMPARED_EMBEDDINGS - len(values))] if queries.values else []
                mapped = retrieval.embed(searcher, [*values[:_COMPARED_EMBEDDINGS], *others])
                exact = [
                    *results.embeddings[:_COMPARED_EMBEDDINGS],
                    *retrieval.embed(searcher, others, encoder_path),
                ]
                threads = retrieval.multithreaded_latency(searcher, values[:_THREADS_QUERIES])
                self.figures |= {f"{prefix}{figure}": value for figure, value in threads.items()}
                self._inspect_encoder(kind, name, np.stack(exact), np.stack(mapped))
            searcher.reopen()
            megapixels = self._artifacts.config.hostile_megapixels
            outcomes = run_hostile_queries(searcher, self._artifacts.corpus, self._scratch, megapixels)
            self.hostile += outcomes
            faults["hostile_queries"] += [f"{name}, {q.name}: {q.detail}" for q in outcomes if q.outcome == "failed"]

    @contextmanager
    def _recording_errors(self, name: str) -> Iterator[None]:
        """Records errors of a searcher as faults."""
        try:
            yield
        except retrieval.QueryError as error:
            self._faults["answers"].append(f"{name}: {error}")
        except SearchforgeError as error:
            if not any(fault.startswith(name) for fault in self._faults["opens"]):
                self._faults["opens"].append(f"{name}: {error}")

    def _record_results(self, kind: InputKind, queries: Queries, results: retrieval.SearchResults) -> None:
        prefix, corpus, config = _PREFIX[kind], self._artifacts.corpus, self._artifacts.config
        ids = {id for ids in results.wide for id in ids} | {hit.id for hits in results.hits for hit in hits}
        self._faults["known_ids"] += [f"unknown id {id!r}" for id in sorted(ids - corpus.row_of.keys())]
        self.figures |= {f"{prefix}{name}": value for name, value in results.latency.items()}
        self.latency[kind] = results.histogram
        if not len(queries):
            return
        comparison = retrieval.compare_with_exact(results, queries, corpus)
        hidden = _RETRIEVAL if corpus.texts and kind == "text" else ()
        self.figures |= _prefixed(prefix, comparison.figures, hidden)
        self.intervals |= _prefixed(prefix, comparison.intervals, hidden)
        self.examples += choose_examples(kind, queries, results, comparison, corpus, _EXAMPLES[kind], config.seed)
        if kind == "image" or corpus.texts:
            self._inspect_embeddings(queries, results.embeddings)

    def _inspect_embeddings(self, queries: Queries, again: npt.NDArray[np.float32]) -> None:
        """Compares the embeddings of queries that are items of the corpus with the stored ones."""
        stored = self._artifacts.corpus.vectors[queries.targets]
        cosines = (again * stored).sum(axis=1) / np.maximum(np.linalg.norm(again, axis=1), 1e-12)
        median = float(np.median(cosines))
        self.figures["embedded_again_cosine"] = median
        self._details["embeddings"] = (
            f"{len(cosines)} items embedded again match their stored embeddings: median cosine {median:.4f}"
        )
        if not median >= MIN_COSINE:
            self._faults["embeddings"].append(
                f"{len(cosines)} items embedded again have a median cosine of {median:.4f} to the stored embeddings, "
                f"below the minimum of {MIN_COSINE}; embed the corpus again"
            )

    def _inspect_encoder(
        self, kind: InputKind, name: str, exact: npt.NDArray[np.float32], mapped: npt.NDArray[np.float32]
    ) -> None:
        """Verifies that a searcher embeds queries like the bundle's encoder, apart from the query map."""
        transform = self._transforms.get(kind)
        if transform is None:
            self._faults["encoders"].append(
                f"{name}: not verified, because its query map or an item of the index is unknown"
            )
            return
        errors = query_errors(transform, exact, mapped)
        if (wrong := int(np.count_nonzero(~(errors <= MAX_QUERY_ERROR)))) > 0:
            self._faults["encoders"].append(
                f"{name}: {wrong} of {len(errors)} queries score differently from the corpus' encoder; build the index "
                "with the encoder that embedded the corpus"
            )

    def finish(self, images_sampled: int) -> None:
        """Completes the figures; without enough captions, recall of the image searcher is the recall of the index."""
        text, image = (self._queries.get(kind, Queries([], [], [])) for kind in ("text", "image"))
        corpus = self._artifacts.corpus
        if "embedded_again_cosine" not in self.figures:
            self._details["embeddings"] = (
                f"not verified: none of {images_sampled} sampled images of the corpus can be read"
                if "image" in self._artifacts.bundle.kinds
                else "not verified: the encoder does not embed images"
            )
        enough = len(text) >= min(MIN_CAPTIONS, len(image)) or text.kind in WITHOUT_ANSWERS
        kind: InputKind = "text" if enough and len(text) else "image"
        if kind == "image":
            for name in ("recall_at_1", "recall_at_10", "recall_at_100"):
                self.figures[name] = self.figures.get(f"image_{name}")
                if f"image_{name}" in self.intervals:
                    self.intervals[name] = self.intervals[f"image_{name}"]
        count = len(corpus.ids)
        self.figures |= {
            "images": count,
            "gallery": count,
            "query_kind": text.kind if kind == "text" else kind,
            "queries": len(text if kind == "text" else image),
            "queries_seen_by_tuner": text.seen_by_tuner if kind == "text" else 0,
            "images_sampled": images_sampled,
            "images_readable": len(image),
            "index_bytes": max((len(file.index or b"") for file in self._files.values()), default=None),
            "searcher_bytes": max((file.size for file in self._files.values()), default=None),
        }

    def gates(self) -> list[Gate]:
        """Returns the gates that no configuration disables."""
        if self._index is None:
            for name in ("items", "item_metadata", "codes", "partitions"):
                self._faults[name].append("not verified: the index cannot be read")
        elif "code_error" not in self.figures:
            for name in ("codes", "partitions"):
                self._faults[name].append(
                    "not verified: an item of the index is unknown, or neither searcher has a usable query map"
                )
        gates = [no_faults(name, self._faults[name], detail) for name, detail in self._details.items()]
        kind: InputKind = "text" if self._artifacts.corpus.texts else "image"
        if self._queries.get(kind):
            share = self.figures.get(f"{_PREFIX[kind]}own_or_equal_at_{retrieval.K}")
            gates.append(at_least(f"{kind}s_find_themselves", share, MIN_SELF_HITS))
        return gates


def _prefixed(prefix: str, values: Mapping[str, Any], hidden: tuple[str, ...]) -> dict[str, Any]:
    """Returns values under prefixed names, without those whose name starts with one of `hidden`."""
    return {f"{prefix}{name}": value for name, value in values.items() if not name.startswith(hidden)}


def _sizes(file: SearcherFile, index: Index | None) -> dict[str, int]:
    """Returns bytes by part; `metadata` is the rest of the LevelDB table, after compression."""
    vocabulary = sum(map(len, file.files.values()))
    table = len(file.index or b"")
    parts = {"model": file.model_bytes, "vocabulary": vocabulary}
    if index is not None:
        parts |= {name: index.sizes[name] for name in ("codes", "centroids_and_codebooks")}
        parts["metadata"] = max(0, table - sum(index.sizes[name] for name in ("codes", "centroids_and_codebooks")))
    return {**parts, "other": max(0, file.size - sum(parts.values()))}
