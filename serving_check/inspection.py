"""Examines the text and the image searcher of one index: the gates that hold for every searcher, and all figures."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.encoder import EncoderInfo
from searchforge.artifacts.manifest import Manifest
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
from serving_check.gates.hostile_queries import ask_hostile
from serving_check.measurement import measure
from serving_check.measurement.corpus import Corpus, metadata_digest
from serving_check.measurement.examples import choose_examples
from serving_check.measurement.queries import NO_ITEM, Queries
from serving_check.measurement.search import Searcher
from serving_check.schema import Example, Histogram, HostileQuery

logger = logging.getLogger(__name__)

Kind = Literal["text", "image"]

MIN_SELF_HITS = 0.8
"""Share of the corpus' images, or texts, that must find themselves: less means another encoder, or shuffled ids."""

MIN_COSINE = 0.98
"""Of a corpus' item embedded again to its stored embedding, in the median: the TFLite form may round a little."""

MIN_CAPTIONS = 200
"""Text queries that are enough to measure recall; with fewer, images of the corpus measure it."""

_PROBED = 128
"""Queries whose embeddings by the searcher are held against those by the bundle's encoder."""

_RETRIEVAL = ("r_at_", "exact_r_at_", "median_rank")
"""Beginnings of the figures of which texts of a text corpus, asked for themselves, say nothing."""

_THREADS_QUERIES = 50
_EXAMPLES: dict[Kind, int] = {"text": 12, "image": 2}
_PREFIX: dict[Kind, str] = {"text": "", "image": "image_"}

_GATES = {
    "files": "both searchers are the files that the build committed",
    "opens": "the Task Library opens both searchers",
    "model": "both models are the bundle's encoders with one more layer",
    "metadata": "TFLite metadata, normalisation and vocabulary are the encoders'",
    "index": "every checksum, offset and length of the index is right, and both searchers carry it",
    "fingerprint": "one encoder throughout",
    "items": "every item of the manifest is in the index once, and nothing else is",
    "item_metadata": "every item's metadata is that of its embedding record",
    "codes": "every code stands for its own item's embedding",
    "partitions": "every centroid lies with the items of its partition",
    "encoders": "both searchers embed queries as the encoder of the corpus does",
    "embeddings": "items embedded again give their stored embeddings",
    "answers": "every query was answered",
    "hostile_queries": "hostile queries are answered or refused with a reason",
    "known_ids": "every hit is an item of the manifest",
}
"""Gates that no configuration turns off, in their order: what is said of one that is passed."""


@dataclass(frozen=True)
class Subject:
    """What is examined, and what it is held against.

    Attributes:
      folder: of the searcher; encoders: of the bundle.
      build: content of build.json.
    """

    folder: Path
    encoders: Path
    build: Mapping[str, Any]
    manifest: Manifest
    bundle: EncoderInfo
    corpus: Corpus
    config: CheckConfig


class Examination:
    """What both searchers showed, so far. A fault of one does not end the examination.

    Attributes:
      figures, intervals, latency, sizes, hostile, examples: see serving_check.schema.
    """

    def __init__(self, subject: Subject, scratch: Path) -> None:
        self._subject, self._scratch = subject, scratch
        self._faults: dict[str, list[str]] = {name: [] for name in _GATES}
        self._found = dict(_GATES)
        self._asked: dict[Kind, Queries] = {}
        self._files: dict[Kind, SearcherFile] = {}
        self._index: Index | None = None
        self._maps: dict[Kind, npt.NDArray[np.float32]] = {}
        self._transforms: dict[Kind, npt.NDArray[np.float32]] = {}
        self.figures: dict[str, Any] = {}
        self.intervals: dict[str, tuple[float, float]] = {}
        self.latency: dict[Kind, Histogram] = {}
        self.sizes: dict[str, dict[str, int]] = {}
        self.hostile: list[HostileQuery] = []
        self.examples: list[Example] = []

    def examine_files(self, names: Mapping[Kind, tuple[str, str]]) -> None:
        """Looks at everything that shows without running a searcher.

        Args:
          names: of each kind the searcher's file and the encoder's.
        """
        subject, faults = self._subject, self._faults
        faults["files"] += structure.file_faults(subject.folder, [name for name, _ in names.values()], subject.build)
        faults["fingerprint"] += structure.bundle_faults(
            subject.encoders, [name for _, name in names.values()], subject.bundle
        )
        faults["fingerprint"] += structure.encoder_faults(subject.build, subject.manifest, subject.bundle)
        for kind, (name, encoder) in names.items():
            self._examine_file(kind, subject.folder / name, subject.encoders / encoder)
        if self._index is not None:
            rows = self._examine_items(self._index)
            if len(rows) and not (rows == NO_ITEM).any():
                self._examine_fidelity(self._index, subject.corpus.vectors[rows], names)

    def _examine_file(self, kind: Kind, path: Path, encoder_path: Path) -> None:
        faults = self._faults
        try:
            searcher, encoder = open_file(path), open_file(encoder_path)
        except (OSError, ValueError) as error:
            faults["model"].append(f"{path.name}: {error}")
            return
        earlier = [file.index for file in self._files.values()]
        self._files[kind] = searcher
        if searcher.index is None:
            faults["index"].append(f"{path.name} holds no index")
        elif not earlier:
            try:
                self._index = read_index(searcher.index)
                require_parameters(self._index, self._subject.build["parameters"])
            except ValueError as error:
                faults["index"].append(f"{path.name}: {error}")
        elif earlier != [searcher.index]:
            faults["index"].append(f"{path.name} carries another index than the other searcher")
        dim = self._index.centroids.shape[1] if self._index else 0
        bundle = self._subject.bundle
        of_file = {
            "model": structure.model_faults(searcher, encoder, dim),
            "metadata": structure.metadata_faults(searcher, encoder, kind, bundle.preprocessing),
        }
        for gate, found in of_file.items():
            faults[gate] += [f"{path.name}: {fault}" for fault in found]
        if (query_map := structure.query_map(searcher, encoder)) is not None:
            self._maps[kind] = query_map
        self.sizes[path.name] = _sizes(searcher, self._index)

    def _examine_items(self, index: Index) -> npt.NDArray[np.int64]:
        """Returns the row [items] in the corpus of each item of the index; NO_ITEM where it has none."""
        subject, faults = self._subject, self._faults
        corpus = subject.corpus
        faults["fingerprint"] += structure.user_info_faults(
            index.user_info, subject.build, subject.manifest, subject.bundle
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
                shown = text[:80].decode(errors="replace")
                faults["item_metadata"].append(f"metadata of an item is {shown!r}, expected a JSON object with an id")
                continue
            indexed[id] += 1
            rows[item] = row = corpus.row_of.get(id, NO_ITEM)
            if row != NO_ITEM and metadata_digest(metadata) != corpus.metadata[row]:
                faults["item_metadata"].append(f"metadata of item {id!r} is not that of its embedding record")
        for what, ids in (
            ("are in the manifest, but not in the index", corpus.row_of.keys() - indexed.keys()),
            ("are in the index, but not in the manifest", indexed.keys() - corpus.row_of.keys()),
            ("are in the index more than once", {id for id, times in indexed.items() if times > 1}),
        ):
            if ids:
                faults["items"].append(f"{len(ids)} items {what}, such as {min(ids)!r}")
        return rows

    def _examine_fidelity(
        self, index: Index, vectors: npt.NDArray[np.float32], names: Mapping[Kind, tuple[str, str]]
    ) -> None:
        """Holds codes and centroids against the items' vectors, and the maps of both searchers against the codes."""
        fidelities: dict[Kind, Fidelity] = {}
        judged: dict[Kind, CodeErrors] = {}
        for kind, query_map in self._maps.items():
            twin = next((other for other in judged if np.array_equal(self._maps[other], query_map)), None)
            if twin is not None:
                fidelities[kind], judged[kind] = fidelities[twin], judged[twin]
                continue
            try:
                fidelities[kind] = Fidelity(index, vectors, query_map)
            except ValueError as error:
                self._faults["encoders"].append(f"{names[kind][0]}: {error}")
            else:
                judged[kind] = fidelities[kind].codes(self._subject.config.seed)
        if not judged:
            return
        self._transforms = {kind: fidelity.transform for kind, fidelity in fidelities.items()}
        best = min(judged, key=lambda kind: judged[kind].left_over)
        self._faults["encoders"] += [
            f"{names[kind][0]} maps queries for another index than the codes are of; build the index again"
            for kind in judged
            if judged[kind] is not judged[best]
        ]
        self._note_codes(judged[best], index)
        self._note_centroids(fidelities[best].centroids())

    def _note_codes(self, errors: CodeErrors, index: Index) -> None:
        self.figures["code_error"] = errors.left_over
        self._found["codes"] += f"; {errors.left_over:.2g} of its square is lost in the median"
        wrong = np.flatnonzero(~(errors.items <= MAX_CODE_ERROR))
        if len(wrong):
            id = json.loads(index.metadata[wrong[0]])["id"]
            self._faults["codes"].append(
                f"{len(wrong)} of {len(errors.items)} codes do not stand for their item, such as that of {id!r}"
            )
        self._faults["codes"] += [f"the codebook of block {block} stands for nothing" for block in errors.empty_blocks]

    def _note_centroids(self, errors: npt.NDArray[np.float64]) -> None:
        if len(wrong := np.flatnonzero(~(errors <= MAX_CENTROID_ERROR))):
            self._faults["partitions"].append(
                f"{len(wrong)} of {len(errors)} centroids do not lie with the items of their partition, such as that "
                f"of partition {wrong[0]}"
            )

    def examine(self, kind: Kind, name: str, encoder: str, queries: Queries, probes: list[str]) -> None:
        """Opens a searcher, asks it the queries, then the hostile ones.

        Args:
          name, encoder: files of the searcher and of the bundle's encoder.
          queries: whose answers are known.
          probes: texts or images of which nothing is known, asked where there are too few queries.
        """
        path, encoder_path = self._subject.folder / name, self._subject.encoders / encoder
        prefix, faults = _PREFIX[kind], self._faults
        self._asked[kind] = queries
        logger.info(f"  {name}: {len(queries)} queries with known answers")
        with self._noting(name), Searcher(path, kind) as searcher:
            with self._noting(name):
                self.figures[f"{prefix}load_seconds"] = searcher.load_seconds
                asked = queries.values or probes
                answers = measure.ask(searcher, encoder_path, asked, f"{kind} searcher")
                self.figures[f"{prefix}memory_bytes"] = searcher.memory_bytes()
                self._note_answers(kind, queries, answers)
                others = probes[: max(0, _PROBED - len(asked))] if queries.values else []
                mapped = measure.embed(searcher, [*asked[:_PROBED], *others])
                exact = [*answers.embeddings[:_PROBED], *measure.embed(searcher, others, encoder_path)]
                threads = measure.threads_latency(searcher, asked[:_THREADS_QUERIES])
                self.figures |= {f"{prefix}{figure}": value for figure, value in threads.items()}
                self._examine_encoder(kind, name, np.stack(exact), np.stack(mapped))
            searcher.reopen()
            megapixels = self._subject.config.hostile_megapixels
            taken = ask_hostile(searcher, self._subject.corpus, self._scratch, megapixels)
            self.hostile += taken
            faults["hostile_queries"] += [f"{name}, {q.name}: {q.detail}" for q in taken if q.outcome == "failed"]

    @contextmanager
    def _noting(self, name: str) -> Iterator[None]:
        """Turns what goes wrong with a searcher into faults."""
        try:
            yield
        except measure.QueryFailed as error:
            self._faults["answers"].append(f"{name}: {error}")
        except SearchforgeError as error:
            if not any(fault.startswith(name) for fault in self._faults["opens"]):
                self._faults["opens"].append(f"{name}: {error}")

    def _note_answers(self, kind: Kind, queries: Queries, answers: measure.Answers) -> None:
        prefix, corpus, config = _PREFIX[kind], self._subject.corpus, self._subject.config
        ids = {id for ids in answers.wide for id in ids} | {hit.id for hits in answers.hits for hit in hits}
        self._faults["known_ids"] += [f"unknown id {id!r}" for id in sorted(ids - corpus.row_of.keys())]
        self.figures |= {f"{prefix}{name}": value for name, value in answers.latency.items()}
        self.latency[kind] = answers.histogram
        if not len(queries):
            return
        compared = measure.compare(answers, queries, corpus)
        hidden = _RETRIEVAL if corpus.texts and kind == "text" else ()
        for noted, found in ((self.figures, compared.figures), (self.intervals, compared.intervals)):
            noted |= {f"{prefix}{name}": value for name, value in found.items() if not name.startswith(hidden)}
        self.examples += choose_examples(kind, queries, answers, compared, corpus, _EXAMPLES[kind], config.seed)
        if kind == "image" or corpus.texts:
            self._examine_embeddings(queries, answers.embeddings)

    def _examine_embeddings(self, queries: Queries, again: npt.NDArray[np.float32]) -> None:
        """Items of the corpus that were asked for themselves must be embedded as they were."""
        stored = self._subject.corpus.vectors[queries.targets]
        cosines = (again * stored).sum(axis=1) / np.maximum(np.linalg.norm(again, axis=1), 1e-12)
        median = float(np.median(cosines))
        self.figures["embedded_again_cosine"] = median
        self._found["embeddings"] = (
            f"{len(cosines)} items embedded again give their stored embeddings: cosine {median:.4f}"
        )
        if not median >= MIN_COSINE:
            self._faults["embeddings"].append(
                f"{len(cosines)} items embedded again have cosine {median:.4f} in the median to the stored ones, "
                f"expected {MIN_COSINE} or more; embed the corpus again"
            )

    def _examine_encoder(
        self, kind: Kind, name: str, exact: npt.NDArray[np.float32], mapped: npt.NDArray[np.float32]
    ) -> None:
        """A searcher must embed queries as the bundle's encoder does, but for the map."""
        transform = self._transforms.get(kind)
        if transform is None:
            self._faults["encoders"].append(f"{name}: not verified, as its map or an item of the index is not known")
            return
        errors = query_errors(transform, exact, mapped)
        if (wrong := int(np.count_nonzero(~(errors <= MAX_QUERY_ERROR)))) > 0:
            self._faults["encoders"].append(
                f"{name}: scores of {wrong} of {len(errors)} queries are not those of the corpus' encoder; build the "
                "index with the encoder that embedded the corpus"
            )

    def finish(self, images_sampled: int) -> None:
        """Completes the figures. Without enough captions, the image searcher's recall is the index' recall."""
        text, image = self._asked["text"], self._asked["image"]
        corpus = self._subject.corpus
        if "embedded_again_cosine" not in self.figures:
            self._found["embeddings"] = (
                f"not verified: none of {images_sampled} sampled images of the corpus can be read"
            )
        kind: Kind = "text" if len(text) >= min(MIN_CAPTIONS, len(image)) and len(text) else "image"
        if kind == "image":
            for name in ("recall_at_1", "recall_at_10", "recall_at_100"):
                self.figures[name] = self.figures.get(f"image_{name}")
                if f"image_{name}" in self.intervals:
                    self.intervals[name] = self.intervals[f"image_{name}"]
        count = len(corpus.ids)
        self.figures |= {
            "images": count,
            "gallery": count,
            "query_kind": "corpus_text" if corpus.texts and kind == "text" else kind,
            "queries": len(text if kind == "text" else image),
            "queries_seen_by_tuner": text.seen if kind == "text" else 0,
            "images_sampled": images_sampled,
            "images_readable": len(image),
            "index_bytes": max((len(file.index or b"") for file in self._files.values()), default=None),
            "searcher_bytes": max((file.size for file in self._files.values()), default=None),
        }

    def gates(self) -> list[Gate]:
        """The gates that no configuration turns off."""
        unread = "not verified: the index cannot be read"
        if self._index is None:
            for name in ("items", "item_metadata", "codes", "partitions"):
                self._faults[name].append(unread)
        elif "code_error" not in self.figures:
            for name in ("codes", "partitions"):
                self._faults[name].append(
                    "not verified: not every item of the index, or neither searcher's map, is known"
                )
        gates = [no_faults(name, self._faults[name], found) for name, found in self._found.items()]
        kind: Kind = "text" if self._subject.corpus.texts else "image"
        if self._asked.get(kind):
            share = self.figures.get(f"{_PREFIX[kind]}own_or_equal_at_{measure.K}")
            gates.append(at_least(f"{kind}s_find_themselves", share, MIN_SELF_HITS))
        return gates


def _sizes(file: SearcherFile, index: Index | None) -> dict[str, int]:
    """Returns bytes by part; `metadata` is what the table's compression leaves of it and of the table's own bytes."""
    vocabulary = sum(map(len, file.files.values()))
    table = len(file.index or b"")
    parts = {"model": file.model_bytes, "vocabulary": vocabulary}
    if index is not None:
        parts |= {name: index.sizes[name] for name in ("codes", "centroids_and_codebooks")}
        parts["metadata"] = max(0, table - sum(index.sizes[name] for name in ("codes", "centroids_and_codebooks")))
    return {**parts, "other": max(0, file.size - sum(parts.values()))}
