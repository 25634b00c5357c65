"""A valid searcher of a tiny corpus, built and checked once for all tests of the check."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from indexer.build import build_index
from searchforge.artifacts.workspace import Workspace
from serving_check.check import check
from tests.indexer.tiny_corpus import TinyCorpus, commit_embeddings, make_corpus

COUNT = 120


@dataclass(frozen=True)
class Built:
    """A tiny corpus of COUNT captioned images and its searcher.

    Attributes:
      report: Report of its check, which passed.
    """

    corpus: TinyCorpus
    searcher: str
    report: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of the searcher."""
        return self.corpus.workspace.local("searchers", self.searcher)

    def check(self, **settings: Any) -> dict[str, Any]:
        """Checks the searcher with changes to the `check` section."""
        section = self.corpus.config.check.model_copy(update=settings)
        return check(self.corpus.config.model_copy(update={"check": section}), self.searcher)

    def rewrite_embeddings(self, records: list[Any]) -> None:
        """Replaces the embeddings that the searcher was built from."""
        shutil.rmtree(Path(self.corpus.workspace.root) / "embeddings/corpus")
        commit_embeddings(self.corpus.workspace, records)


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A searcher for tests that change nothing."""
    corpus = make_corpus(tmp_path_factory.mktemp("good"), COUNT)
    searcher = build_index(corpus.config, "corpus")["id"]
    return Built(corpus, searcher, check(corpus.config, searcher))


@pytest.fixture
def built(good: Built, tmp_path: Path) -> Built:
    """A copy of the searcher, which a test may damage."""
    shutil.copytree(good.corpus.workspace.root, tmp_path / "workspace")
    workspace = Workspace(str(tmp_path / "workspace"))
    # `good` was checked with large hostile images.
    small = good.corpus.config.check.model_copy(update={"hostile_megapixels": 0.01})
    config = good.corpus.config.model_copy(update={"workspace": workspace.root, "check": small})
    return Built(TinyCorpus(workspace, config, good.corpus.records), good.searcher, good.report)
