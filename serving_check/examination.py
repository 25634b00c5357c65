"""Examines the text and the image searcher of one index: the gates that hold for every searcher, and all figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from searchforge.encoder import EncoderInfo
from searchforge.errors import SearchforgeError
from searchforge.manifest import Manifest
from serving_check import measure
from serving_check.corpus import Corpus, Queries
from serving_check.gates import Gate, at_least, no_faults
from serving_check.search import Searcher
from serving_check.structure import examine_index, fingerprint_faults

MIN_SELF_HITS = 0.8
"""Share of the corpus' images, or texts, that must find themselves: less means another encoder, or shuffled ids."""

LATENCY_TEXTS = [
    "a dog on a beach",
    "two children playing in the snow",
    "a red car parked in front of a house",
    "people at a table with food",
    "a mountain lake at sunset",
] * 10
"""Texts that latency is measured with where there are no captions."""

_FIGURE_PREFIX = {"text": "", "image": "image_"}


class Examination:
    """What both searchers showed, so far. A fault of one does not end the examination."""

    def __init__(self, corpus: Corpus, manifest: Manifest, bundle: EncoderInfo) -> None:
        self._corpus, self._manifest, self._bundle = corpus, manifest, bundle
        self._figures: dict[str, Any] = {}
        self._asked: dict[str, int] = {}
        self._structure: list[str] = []
        self._fingerprint: list[str] = []
        self._answers: list[str] = []
        self._unknown: list[str] = []

    def examine(self, kind: Literal["text", "image"], path: Path, encoder: Path, queries: Queries) -> None:
        """Opens a searcher and asks it the queries; where there are no texts, the texts that measure latency.

        Args:
          encoder: the bundle's, by whose embeddings the exact answers are found: the searcher's own are mapped.
        """
        prefix = _FIGURE_PREFIX[kind]
        self._asked[kind] = len(queries)
        try:
            self._figures |= examine_index(path, self._corpus)  # both searchers carry the same index
        except (OSError, ValueError) as error:
            self._structure.append(f"{path.name}: {error}")
        try:
            searcher = Searcher(path, kind, encoder)
        except SearchforgeError as error:
            self._structure.append(f"{path.name} does not open: {error}")
            return
        with searcher:
            self._figures[f"{prefix}load_seconds"] = searcher.load_seconds
            self._fingerprint += fingerprint_faults(searcher.user_info, path.name, self._manifest, self._bundle)
            values = queries.values or (LATENCY_TEXTS if kind == "text" else [])
            if not values:
                return
            try:
                answers = measure.ask(searcher, values, f"{kind} searcher")
            except measure.QueryFailed as error:
                self._answers.append(f"{path.name}: {error}")
                return
        self._unknown += [id for ids in answers.hits for id in ids if id not in self._corpus.row_of]
        measured = measure.latency(answers)
        if len(queries):
            measured |= measure.compare(answers, queries, self._corpus)
        self._figures |= {f"{prefix}{name}": value for name, value in measured.items()}

    def figures(self) -> dict[str, Any]:
        """Everything measured. Without captions, the image searcher's recall is the index' recall.

        The texts of a text corpus, asked for themselves, say nothing of retrieval quality, which is then left out.
        """
        kind = "text" if self._asked["text"] else "image"
        images = len(self._corpus.ids)
        of_texts = "corpus_text" if self._corpus.texts else kind
        figures = {"images": images, "gallery": images, "query_kind": of_texts, "queries": self._asked[kind]}
        recall = {name: self._figures.get(f"{_FIGURE_PREFIX[kind]}{name}") for name in ("recall_at_1", "recall_at_10")}
        measured = {
            name: value
            for name, value in self._figures.items()
            if not (self._corpus.texts and name.startswith(("r_at_", "exact_r_at_")))
        }
        return {**figures, **measured, **recall}

    def gates(self) -> list[Gate]:
        """The gates that no configuration turns off."""
        unknown = [f"unknown id {id!r}" for id in self._unknown]
        gates = [
            no_faults("structure", self._structure, "both searchers open, and index exactly the manifest's items"),
            no_faults("fingerprint", self._fingerprint, f"one encoder throughout: {self._manifest.fingerprint[:16]}"),
            no_faults("answers", self._answers, "every query was answered"),
            no_faults("known_ids", unknown, "every hit is an item of the manifest"),
        ]
        if self._corpus.texts:
            gates.append(at_least("texts_find_themselves", self._figures.get("own_or_equal_at_10"), MIN_SELF_HITS))
        if self._asked["image"]:
            gates.append(
                at_least("images_find_themselves", self._figures.get("image_own_or_equal_at_10"), MIN_SELF_HITS)
            )
        return gates
