"""The releases that a server searches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import api
from infra.serve.request_error import RequestError
from infra.serve.thumbnails import Thumbnails
from searchforge.artifacts.searcher import IMAGE_SEARCHER, TEXT_SEARCHER
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import UsageError

if TYPE_CHECKING:
    from infra.releases.releases import Release
    from searchforge.config import Config


@dataclass(frozen=True)
class ServedRelease:
    """A release with its searcher files and thumbnails.

    Attributes:
      searchers: Searcher files by the kind of query that they accept: `text`, `image`.
    """

    release: Release
    searchers: dict[str, Path]
    thumbnails: Thumbnails

    @property
    def id(self) -> str:
        return self.release.id

    @property
    def first_searcher(self) -> Path:
        """Searcher file that every worker opens when the server starts."""
        return next(iter(self.searchers.values()))

    def searcher(self, kind: str) -> Path:
        """Returns the file that accepts queries of this kind.

        Raises:
          RequestError: The release has no such file.
        """
        if kind not in self.searchers:
            accepted = " and ".join(self.searchers)
            raise RequestError(400, f"release {self.id} accepts {accepted} queries, not {kind} queries")
        return self.searchers[kind]

    def describe(self) -> dict[str, Any]:
        """Returns the description that clients receive."""
        return {
            "id": self.id,
            "live": self.release.live,
            "created": self.release.created,
            "images": self.release.figures.get("images"),
            "figures": self.release.figures,
            "provenance": self.release.provenance,
            "queries": list(self.searchers),
            "pictures": {"state": self.thumbnails.state.name, "reason": self.thumbnails.state.reason},
        }


def open_served_releases(config: Config, names: Sequence[str]) -> dict[str, ServedRelease]:
    """Returns releases by their ids.

    Args:
      names: Ids, folders or URLs, as for `infra.api.open_release`; the live release if empty.

    Raises:
      UsageError: A release does not exist, is named twice, or lacks its files.
    """
    opened: dict[str, ServedRelease] = {}
    thumbnails: dict[str, Thumbnails] = {}
    chosen: Sequence[str | None] = names or [None]
    for name in chosen:
        release, folder = api.open_release(config, name)
        if release.id in opened:
            raise UsageError(f"release {release.id} is named twice; name each release once")
        files = {"text": folder / TEXT_SEARCHER, "image": folder / IMAGE_SEARCHER}
        searchers = {kind: path for kind, path in files.items() if path.is_file()}
        if not searchers:
            raise UsageError(
                f"{folder} contains neither {TEXT_SEARCHER} nor {IMAGE_SEARCHER}; publish the release again"
            )
        embeddings = release.provenance["embeddings"]
        if embeddings not in thumbnails:
            workspaces = [Workspace(config.workspace), Workspace(str(folder.parent.parent))]
            thumbnails[embeddings] = Thumbnails(workspaces, embeddings, config.corpus.max_pixels)
        opened[release.id] = ServedRelease(release, searchers, thumbnails[embeddings])
    return opened
