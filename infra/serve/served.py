"""The releases that a server answers from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import api
from infra.serve.pictures import Pictures
from searchforge.artifacts.searcher import IMAGE_SEARCHER, TEXT_SEARCHER
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import UsageError

if TYPE_CHECKING:
    from infra.releases.releases import Release
    from searchforge.config import Config


@dataclass(frozen=True)
class Served:
    """One release.

    Attributes:
      searchers: its files, by the kind of query that they take: `text`, `image`.
      pictures: of its items.
    """

    release: Release
    searchers: dict[str, Path]
    pictures: Pictures

    @property
    def first_searcher(self) -> Path:
        """The file that is opened at the start."""
        return next(iter(self.searchers.values()))

    def describe(self) -> dict[str, Any]:
        """Returns what clients are told about it."""
        return {
            "id": self.release.id,
            "live": self.release.live,
            "created": self.release.created,
            "images": self.release.figures.get("images"),
            "figures": self.release.figures,
            "provenance": self.release.provenance,
            "queries": list(self.searchers),
            "pictures": {"state": self.pictures.state.name, "reason": self.pictures.state.reason},
        }


def open_served(config: Config, names: Sequence[str]) -> dict[str, Served]:
    """Finds releases, by their ids.

    Args:
      names: ids, folders or URLs, as of `infra.api.open_release`; none: the live release.

    Raises:
      UsageError: there is no such release, it is named twice, or its files are missing.
    """
    found: dict[str, Served] = {}
    pictures: dict[str, Pictures] = {}
    chosen: Sequence[str | None] = names or [None]
    for name in chosen:
        release, folder = api.open_release(config, name)
        if release.id in found:
            raise UsageError(f"release {release.id} is named twice; name each release once, and others to compare")
        files = {"text": folder / TEXT_SEARCHER, "image": folder / IMAGE_SEARCHER}
        searchers = {kind: path for kind, path in files.items() if path.is_file()}
        if not searchers:
            raise UsageError(f"{folder} holds neither {TEXT_SEARCHER} nor {IMAGE_SEARCHER}; publish the release again")
        embeddings = release.provenance["embeddings"]
        if embeddings not in pictures:
            workspaces = [Workspace(config.workspace), Workspace(str(folder.parent.parent))]
            pictures[embeddings] = Pictures(workspaces, embeddings, config.corpus.max_pixels)
        found[release.id] = Served(release, searchers, pictures[embeddings])
    return found
