"""The Python API: one function for each stage, and `run` for all of them.

    from infra import api
    from searchforge.config import load_config

    config = load_config("searchforge.yaml")
    api.run(config)
    hits = api.search(config, "a dog on a beach")

Every stage reuses what an earlier run finished, so a killed `run` resumes when it is started again. Stages report
their progress through `logging`; `logging.basicConfig(level=logging.INFO)` shows it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.releases import channels
from infra.releases import releases as _releases
from infra.releases.channels import PRODUCTION, STAGING
from infra.releases.releases import Release, ReleaseListing
from infra.source_table import build_table, find_source
from infra.stages import (
    KIND_OF_STAGE,
    check,
    choose_artifact,
    compact,
    embed,
    estimate,
    evaluate,
    index,
    require_publishable,
    train,
)
from searchforge.artifacts.encoder import EncoderInfo, InputKind
from searchforge.artifacts.searcher import IMAGE_SEARCHER, SEARCHERS, TEXT_SEARCHER
from searchforge.artifacts.workspace import Workspace
from searchforge.config import Config
from searchforge.errors import JobError, UsageError
from searchforge.storage.factory import open_storage

if TYPE_CHECKING:
    from beam_jobs.exchange.export import ExportReport, Format
    from infra.reindex.journal import Run
    from infra.reindex.plan import ReindexPlan
    from infra.reindex.status import Status
    from infra.releases.pruning import PruneResult
    from searchforge.artifacts.manifest import Manifest, Modality
    from serving_check.measurement.search import Hit
    from trainer.importing.requirements import EncoderFiles

logger = logging.getLogger(__name__)

__all__ = [
    "RunReport",
    "check",
    "compact",
    "corpus_images",
    "embed",
    "encoders",
    "estimate",
    "evaluate",
    "export_embeddings",
    "import_embeddings",
    "import_encoder",
    "index",
    "is_image_query",
    "metrics",
    "open_release",
    "preview_reindex",
    "promote",
    "prune",
    "publish",
    "reindex",
    "releases",
    "require_healthy",
    "rollback",
    "run",
    "search",
    "search_many",
    "status",
    "train",
    "write_contact_sheet",
    "write_metrics",
]


@dataclass(frozen=True)
class RunReport:
    """Result of `run`.

    Attributes:
      seconds: Wall time by stage.
      release: The published release.
      reports: JSON report by stage.
    """

    seconds: dict[str, float]
    release: Release
    reports: dict[str, dict[str, Any]]


def import_encoder(config: Config, files: EncoderFiles) -> EncoderInfo:
    """Commits an encoder bundle from TFLite files that were made elsewhere; see trainer.importing.import_encoder."""
    from trainer.importing.import_encoder import import_encoder as import_files

    return import_files(Workspace(config.workspace), files)


def encoders(config: Config, id: str | None = None) -> list[EncoderInfo]:
    """Returns the encoder bundles of the workspace, or the one with this id."""
    workspace = Workspace(config.workspace)
    ids = [id] if id else workspace.ids("encoders")
    return [EncoderInfo.model_validate(workspace.marker("encoders", id)) for id in ids]


def export_embeddings(
    config: Config, embeddings: str | None = None, format: Format = "parquet", folder: Path | None = None
) -> ExportReport:
    """Writes an embedding run, by default the workspace's only one, for other tools; see beam_jobs.exchange.export."""
    from beam_jobs.exchange.export import export

    return export(config, choose_artifact(config, "embeddings", embeddings), format, folder)


def import_embeddings(
    config: Config, files: Sequence[Path], encoder: str, modality: Modality | None = None, ids: Sequence[Path] = ()
) -> Manifest:
    """Commits embeddings that were computed elsewhere as a run; see beam_jobs.exchange.import_run.import_embeddings."""
    from beam_jobs.exchange.import_run import import_embeddings as import_files

    return import_files(config, files, encoder, modality, ids)


def publish(config: Config, check: str | None = None, channel: str = PRODUCTION) -> Release:
    """Publishes a searcher that passed its check and makes it live in a channel."""
    workspace = Workspace(config.workspace)
    return _releases.publish(
        workspace, _releases.open_target(config), choose_artifact(config, "checks", check), channel=channel
    )


def rollback(config: Config, to: str | None = None, channel: str = PRODUCTION) -> Release:
    """Makes an earlier release live again."""
    return _releases.rollback(_releases.open_target(config), to, channel)


def promote(config: Config, source: str = STAGING, to: str = PRODUCTION, release: str | None = None) -> Release:
    """Makes `release`, by default the live release of one channel, live in another channel."""
    return _releases.promote(_releases.open_target(config), source, to, release)


def prune(config: Config, dry_run: bool = False) -> PruneResult:
    """Deletes releases that neither `reindex.keep_releases` nor `reindex.keep_days` protects."""
    from infra.releases.pruning import prune as prune_releases

    keep = config.reindex.keep_releases
    if keep is None:
        raise UsageError("reindex.keep_releases is null, which keeps every release; set the number to keep with --keep")
    return prune_releases(_releases.open_target(config), keep, config.reindex.keep_days, dry_run)


def releases(config: Config) -> ReleaseListing:
    """Returns all releases and refused publications, most recent first."""
    target = _releases.open_target(config)
    return ReleaseListing(_releases.list_releases(target), _releases.list_refusals(target))


def run(config: Config, allow_removal: bool = False) -> RunReport:
    """Trains unless `encoder` is configured, embeds, indexes, checks and publishes.

    Args:
      allow_removal: Whether the index may have fewer items than `check.max_items_drop` allows.

    Raises:
      UsageError: The configuration describes a searcher that cannot be published, or an encoder that was rolled back.
      GateError: The searcher did not pass its check; nothing was published.
    """
    require_publishable(config)
    workspace, target = Workspace(config.workspace), _releases.open_target(config)
    bundle = EncoderInfo.model_validate(workspace.marker("encoders", config.encoder)) if config.encoder else None
    dim, source = (bundle.dim, f"encoder {bundle.id} has") if bundle else (config.train.dim, "train.dim is")
    if (code_bytes := config.index.code_bytes) and code_bytes > dim:
        raise UsageError(f"index.code_bytes is {code_bytes}, but {source} {dim}; set it to at most {dim}")
    names = [*([] if bundle else ["train"]), "embed", "index", "check"]
    logger.info(f"{', '.join(names)} and publish into {config.workspace}; finished stages are reused")
    for each in (workspace, target):
        each.require_writable()  # fails before the training rather than after it
    seconds: dict[str, float] = {}
    reports: dict[str, dict[str, Any]] = {}

    def stage(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        logger.info(f"\n[{len(seconds) + 1}/{len(names) + 1}] {name}")
        start = time.monotonic()
        reports[name] = work()
        seconds[name] = round(time.monotonic() - start, 1)
        url = workspace.url(KIND_OF_STAGE[name], reports[name]["id"])
        logger.info(f"  {name} finished in {seconds[name]:.1f} s: {url}")
        return reports[name]

    if bundle:
        encoder = bundle.id
    else:
        encoder = stage("train", lambda: train(config))["id"]
        _require_not_withdrawn(encoder, channels.read(target.storage, PRODUCTION).pointer)
    manifest = stage("embed", lambda: embed(config, encoder))
    build = stage("index", lambda: index(config, manifest["id"], encoder))
    report = stage("check", lambda: check(config, build["id"], allow_removal=allow_removal))
    logger.info(f"\n[{len(names) + 1}/{len(names) + 1}] publish")
    release = _releases.publish(workspace, target, report["id"], revive=False)
    return RunReport(seconds, release, reports)


def _require_not_withdrawn(encoder: str, pointer: channels.Pointer) -> None:
    """Raises UsageError if the encoder that the settings stand for was rolled back."""
    if encoder in pointer.withdrawn_encoders:
        raise UsageError(
            f"encoder {encoder}, which has the configured settings, was rolled back in channel {PRODUCTION}; change "
            "the training settings or the captions to train another one, or use it after all with "
            f"`--encoder {encoder}`"
        )


def status(config: Config, count: int = 10, lag: bool = False) -> Status:
    """Returns the state of re-indexing.

    Args:
      count: Number of runs to list, latest first.
      lag: Whether to list the corpus now; by default, the lag is the one found by the latest run.
    """
    from infra.reindex.status import read_status, with_plan

    found = read_status(config, count)
    return with_plan(found, preview_reindex(config)) if lag else found


def require_healthy(found: Status, max_age: str | None = None) -> None:
    """Raises JobError if re-indexing has stopped, or if the index is older than `max_age` (for example `26h`)."""
    from infra.reindex.status import parse_age

    if faults := found.faults(parse_age(max_age) if max_age else None):
        raise JobError("; ".join(faults))


def metrics(config: Config) -> str:
    """Returns the state of re-indexing in the Prometheus text format."""
    from infra.reindex.metrics import text

    return text(config)


def write_metrics(config: Config, path: Path) -> None:
    """Writes the metrics atomically to a local file, for node_exporter's textfile collector."""
    path = path.expanduser().absolute()
    open_storage(str(path.parent)).write(path.name, metrics(config).encode())


def reindex(
    config: Config,
    *,
    trigger: str = "command",
    resume: bool = False,
    allow_removal: bool = False,
    now: datetime | None = None,
) -> Run:
    """Updates the live release if the corpus has changed; see infra.reindex.run.reindex."""
    from infra.reindex.run import reindex as run_reindex

    return run_reindex(config, trigger=trigger, resume=resume, allow_removal=allow_removal, now=now)


def preview_reindex(config: Config) -> ReindexPlan:
    """Returns what `reindex` would do, without changing anything."""
    from infra.reindex.run import preview

    return preview(config)


def _require_searcher(folder: Path, kind: InputKind) -> None:
    """Raises UsageError if a release searches by the other kind of query only."""
    found = [other for other, name in SEARCHERS.items() if (folder / name).is_file()]
    if found and kind not in found:
        example = "a text" if kind == "image" else "the path of an image"
        raise UsageError(
            f"release {folder.name} searches by {found[0]} only, because its encoder does not embed {kind}s; give "
            f"{example} as the query"
        )


def search(config: Config, query: str, k: int = 10, release: str | None = None, channel: str = PRODUCTION) -> list[Hit]:
    """Searches a release with the Task Library.

    Args:
      query: Text, or path of an image file.
      k: Maximum number of hits.
      release: Id of a release, or folder or URL of releases, whose live one is searched; by default the live one.
      channel: Channel of the live release.

    Returns:
      Hits, best first.
    """
    return search_many(config, [query], k, release, channel)[0]


def search_many(
    config: Config, queries: Sequence[str], k: int = 10, release: str | None = None, channel: str = PRODUCTION
) -> list[list[Hit]]:
    """Searches a release with several queries; see `search`."""
    from serving_check.measurement.search import Searcher

    folder = open_release(config, release, channel)[1]
    results: list[list[Hit]] = []
    with contextlib.ExitStack() as stack:
        opened: dict[str, Searcher] = {}
        for query in queries:
            image = is_image_query(query)
            name = IMAGE_SEARCHER if image else TEXT_SEARCHER
            if name not in opened:
                _require_searcher(folder, "image" if image else "text")
                opened[name] = stack.enter_context(Searcher(folder / name))
            results.append(opened[name].search_image(Path(query), k) if image else opened[name].search_text(query, k))
    return results


def open_release(config: Config, release: str | None = None, channel: str = PRODUCTION) -> tuple[Release, Path]:
    """Returns a release and a local folder that contains its files; see `search` for the arguments."""
    if release and ("/" in release or Path(release).is_dir()):
        return _releases.find_release(Workspace(release), channel=channel)
    return _releases.find_release(_releases.open_target(config), release, channel)


def is_image_query(query: str) -> bool:
    """Returns whether a query is the path of a file, and therefore an image."""
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # a text may be too long for a path
        return False


def corpus_images(config: Config, embeddings: str, ids: set[str]) -> dict[str, Path]:
    """Returns the local files of an embedding run's items by id; remote and unknown items are omitted.

    The first call for a run reads all its records into a table; later calls only look the ids up.
    """
    workspace = Workspace(config.workspace)
    if not workspace.committed("embeddings", embeddings):
        return {}
    table = build_table(workspace, embeddings)
    found = {id: find_source(table, id) for id in ids}
    return {id: Path(source.uri) for id, source in found.items() if source and "://" not in source.uri}


def write_contact_sheet(
    config: Config,
    queries: Sequence[str],
    results: Sequence[Sequence[Hit]],
    release: str | None = None,
    expected: Sequence[str] = (),
    path: Path = Path("contact-sheet.png"),
    channel: str = PRODUCTION,
) -> Path:
    """Draws queries with the images of their hits; images that are not available locally are grey.

    Args:
      results: Hits of each query, best first.
      expected: Id of each query's expected image, which is framed.

    Returns:
      `path`.
    """
    from infra.contact_sheet import QueryRow, Tile, draw_contact_sheet

    found, _ = open_release(config, release, channel)
    images = corpus_images(config, found.provenance["embeddings"], {hit.id for hits in results for hit in hits})
    targets = [*expected, *[""] * (len(queries) - len(expected))]
    rows = [
        QueryRow(query, [Tile(images.get(hit.id), hit.score, hit.id == target) for hit in hits])
        for query, hits, target in zip(queries, results, targets, strict=True)
    ]
    draw_contact_sheet(f"release {found.id}: {found.figures['images']} images", rows, path)
    return path
