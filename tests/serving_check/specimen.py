"""Specimens: valid searchers in workspaces of their own, each of which a corruption damages in one place.

After most corruptions, build.json is updated with the SHA-256 of the damaged files ("signed"), so that a gate can catch
the corruption only by understanding the content.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from indexer.build import build_index
from searchforge.artifacts.encoder import InputKind
from searchforge.artifacts.searcher import IMAGE_SEARCHER, INDEX, TEXT_SEARCHER
from searchforge.artifacts.workspace import MARKERS, Kind, Workspace
from searchforge.config import Config
from searchforge.hashing import sha256_file
from serving_check.check import check
from tests.indexer.tiny_corpus import commit_embeddings, make_corpus, tiny_encoder
from tests.indexer.tiny_encoder import random_images
from tests.serving_check.inspect_gates import FILE_GATES, failed_gates
from tests.serving_check.searcher_parts import INDEX_NAME, Entries, Index, SearcherFile, table_entries, table_of

COUNT = 400
PARTITIONS = 8
BOTH = (TEXT_SEARCHER, IMAGE_SEARCHER)

SearcherName = Literal["text_searcher.tflite", "image_searcher.tflite"]


@dataclass(frozen=True)
class Specimen:
    """A searcher to damage.

    Attributes:
      searcher: Id of the searcher.
      other: Id of a searcher of the same number of other images, with the same settings.
      random: Generator of this corruption, seeded with its name.
    """

    config: Config
    searcher: str
    other: str
    random: np.random.Generator

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.config.workspace)

    @property
    def folder(self) -> Path:
        """Folder of the searcher."""
        return self.workspace.local("searchers", self.searcher)

    def path(self, name: str) -> Path:
        """Returns the path of a file of the searcher."""
        return self.folder / name

    def index(self, searcher: str | None = None) -> Index:
        """Returns the parsed index of this searcher, or of another one."""
        folder = self.workspace.local("searchers", searcher or self.searcher)
        return Index.of_entries(table_entries((folder / INDEX).read_bytes()))

    def change_file(self, name: str, change: Callable[[SearcherFile], None]) -> None:
        """Parses a searcher file, changes it and writes it."""
        file = SearcherFile.read(self.path(name))
        change(file)
        file.write(self.path(name))

    def replace_table(self, table: bytes, names: Iterable[str] = BOTH) -> None:
        """Replaces the index table of searchers."""
        self.path(INDEX).write_bytes(table)
        for name in names:
            self.change_file(name, lambda file: file.files.update({INDEX_NAME: table}))

    def replace_index(self, index: Index, names: Iterable[str] = BOTH) -> None:
        """Replaces the index of searchers."""
        self.replace_table(table_of(index.entries()), names)

    def change_entries(self, change: Callable[[Entries], object]) -> None:
        """Changes the entries of the index table in both searchers."""
        entries = table_entries(self.path(INDEX).read_bytes())
        change(entries)
        self.replace_table(table_of(entries))

    def change_index(self, change: Callable[[Index], object]) -> None:
        """Changes the index in both searchers."""
        index = self.index()
        change(index)
        self.replace_index(index)

    def change_marker(self, kind: Kind, id: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes the marker file of an artifact."""
        path = self.workspace.local(kind, id) / MARKERS[kind]
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    def sign(self) -> None:
        """Updates build.json with the SHA-256 of the current files."""

        def list_files(build: dict[str, Any]) -> None:
            build["files"] |= {
                name: sha256_file(self.path(name)) for name in build["files"] if self.path(name).is_file()
            }

        self.change_marker("searchers", self.searcher, list_files)

    def check(self) -> dict[str, Any]:
        """Returns the report of a check."""
        return check(self.config, self.searcher)

    def failed_gates(self, *run: InputKind) -> dict[str, str]:
        """Returns the failed gates; see tests.serving_check.inspect_gates."""
        return failed_gates(self.config, self.searcher, *run)


@dataclass(frozen=True)
class Corruption:
    """A way in which a searcher can be invalid.

    Attributes:
      gate: Gate that must catch the corruption.
      apply: Damages a specimen.
      signed: Whether build.json lists the damaged files.
      runs: Whether the searcher is opened and queried, because only that reveals the fault or because it might crash.
    """

    name: str
    gate: str
    apply: Callable[[Specimen], None]
    signed: bool
    runs: bool


_registered: dict[str, Corruption] = {}


def caught_by(
    gate: str, signed: bool = True, runs: bool = False, name: str = ""
) -> Callable[[Callable[[Specimen], None]], Callable[[Specimen], None]]:
    """Registers a function that damages a specimen, with the gate that must catch the damage.

    Args:
      signed, runs: See Corruption; a corruption that no file gate catches is always run.
      name: Name of the corruption; by default that of the function.
    """

    def register(apply: Callable[[Specimen], None]) -> Callable[[Specimen], None]:
        title = name or apply.__name__
        assert title not in _registered, f"two corruptions are named {title}"
        _registered[title] = Corruption(title, gate, apply, signed, runs or gate not in FILE_GATES)
        return apply

    return register


def registered() -> dict[str, Corruption]:
    """Returns the registered corruptions of all imported modules, by name."""
    return dict(_registered)


def make_template(root: Path) -> Specimen:
    """Builds the valid searcher that specimens are copies of."""
    corpus = make_corpus(
        root,
        COUNT,
        index__reuse_from="none",
        index__max_drift=1e6,
        index__code_bytes=4,
        index__partitions=PARTITIONS,
        index__partitions_searched=4,
        index__recall_at_10=None,
        check__queries=24,
        check__images=16,
        check__hostile_megapixels=0.01,  # other tests of the check use large ones
        check__min_recall_at_10=0.4,
    )
    encoder, _, _ = tiny_encoder()
    others = zip(corpus.records, random_images(COUNT, seed=1), strict=True)
    renamed = [
        dataclasses.replace(record, id=f"other-{record.id}", embedding=encoder.image(pixels))
        for record, pixels in others
    ]
    commit_embeddings(corpus.workspace, renamed, "other")
    other, searcher = (build_index(corpus.config, embeddings)["id"] for embeddings in ("other", "corpus"))
    return Specimen(corpus.config, searcher, other, np.random.default_rng(0))


def rebuilt(template: Specimen, **settings: Any) -> Specimen:
    """Returns another searcher of the template's embeddings with different settings of the index."""
    index = template.config.index.model_copy(update=settings)
    config = template.config.model_copy(update={"index": index})
    return dataclasses.replace(template, config=config, searcher=build_index(config, "corpus")["id"])


def copy_of(template: Specimen, root: Path, name: str) -> Specimen:
    """Returns a copy whose random generator is seeded with `name`."""
    shutil.copytree(template.config.workspace, root / "workspace", ignore=shutil.ignore_patterns("cache", "checks"))
    config = template.config.model_copy(update={"workspace": str(root / "workspace")})
    return Specimen(config, template.searcher, template.other, np.random.default_rng(zlib.crc32(name.encode())))
