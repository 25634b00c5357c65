"""The Python API: one function for each stage, and `run` for all of them.

    from infra import api
    from searchforge.config import load_config

    config = load_config("searchforge.yaml")
    api.run(config)
    hits = api.search(config, "a dog on a beach")

Every stage finds what an earlier run finished, so that a killed `run`, started again, goes on where it was.
Stages are imported when they are used.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import releases as _releases
from infra.channels import PRODUCTION, STAGING
from infra.releases import Listing, Release
from searchforge import progress
from searchforge.cli import import_quietly
from searchforge.config import Config
from searchforge.errors import JobError, UsageError
from searchforge.manifest import Manifest, Modality, read_shards
from searchforge.searcher import IMAGE_SEARCHER, TEXT_SEARCHER
from searchforge.storage import open_storage
from searchforge.workspace import Kind, Workspace

if TYPE_CHECKING:
    from beam_jobs.estimate import Estimate
    from beam_jobs.listing import Listing as CorpusListing
    from infra.pruning import Pruned
    from infra.reindex.journal import Run
    from infra.reindex.plan import Plan
    from infra.status import Status
    from serving_check.search import Hit


KIND_OF_STAGE: dict[str, Kind] = {"train": "encoders", "embed": "embeddings", "index": "searchers", "check": "checks"}
"""What each stage makes."""


@dataclass(frozen=True)
class RunReport:
    """What `run` did.

    Attributes:
      seconds: wall time by stage.
      release: what is live.
      reports: of every stage, by its name.
    """

    seconds: dict[str, float]
    release: Release
    reports: dict[str, dict[str, Any]]


def train(config: Config) -> dict[str, Any]:
    """Trains a dual encoder on a Ray cluster; returns encoder.json."""
    import_quietly("tensorflow")
    from trainer.train import train as train_encoder

    return train_encoder(config).model_dump()


def evaluate(config: Config, encoder: str | None = None, compare_forms: bool = False) -> dict[str, Any]:
    """Measures an encoder on the held-out captions; returns report.json.

    Args:
      encoder: default: the one with the configuration's training settings, or the workspace's only one.
      compare_forms: also export the text encoder in every TFLite form, and measure each.
    """
    import_quietly("tensorflow")
    from trainer.evaluate_bundle import evaluate_bundle

    return evaluate_bundle(config, encoder, compare_forms).model_dump(mode="json")


def embed(
    config: Config, encoder: str | None = None, modality: Modality = "images", listing: CorpusListing | None = None
) -> dict[str, Any]:
    """Embeds the corpus with a Beam job, building on what an earlier run holds; returns MANIFEST.json.

    Args:
      listing: of the corpus, which is used up; by default it is listed now.
    """
    import_quietly("apache_beam")
    from beam_jobs.embed import embed as embed_corpus

    return embed_corpus(config, _choose(config, "encoders", encoder), modality, listing).model_dump()


def compact(config: Config, embeddings: str | None = None) -> dict[str, Any]:
    """Copies the records of a run, which other runs' shards may hold, into shards of its own; returns MANIFEST.json."""
    import_quietly("apache_beam")
    from beam_jobs.embed import compact as compact_run

    return compact_run(config, _choose(config, "embeddings", embeddings)).model_dump()


def estimate(
    config: Config, encoder: str | None = None, modality: Modality = "images", workers: int = 1, sample: int = 256
) -> Estimate:
    """Measures on a sample how long the whole corpus takes on some workers, and how many bytes come out."""
    import_quietly("apache_beam")
    from beam_jobs.estimate import estimate as estimate_run

    return estimate_run(config, _choose(config, "encoders", encoder), modality, workers, sample)


def index(config: Config, embeddings: str | None = None, encoder: str | None = None) -> dict[str, Any]:
    """Builds both searchers from an embedding run; returns build.json.

    Args:
      encoder: that answers queries; by default the one that made the embeddings.
    """
    from indexer.build import build_index

    return build_index(config, _choose(config, "embeddings", embeddings), encoder)


def check(config: Config, searcher: str | None = None, channel: str = PRODUCTION) -> dict[str, Any]:
    """Checks a searcher with the Task Library, beside a channel's live release; returns report.json, passed or not."""
    from serving_check.check import check as check_searcher
    from serving_check.live import LiveRelease

    target, live = _releases.open_target(config), None
    if _releases.live_release(target, channel):
        release, folder = _releases.find_release(target, channel=channel)
        live = LiveRelease(release.id, release.created, release.provenance["searcher"], folder, release.figures)
    return check_searcher(config, _choose(config, "searchers", searcher), live)


def publish(config: Config, check: str | None = None, channel: str = PRODUCTION) -> Release:
    """Publishes what a passed check vouches for, and makes it the live one of a channel."""
    workspace = Workspace(config.workspace)
    return _releases.publish(
        workspace, _releases.open_target(config), _choose(config, "checks", check), channel=channel
    )


def rollback(config: Config, to: str | None = None, channel: str = PRODUCTION) -> Release:
    """Makes an earlier release live again."""
    return _releases.rollback(_releases.open_target(config), to, channel)


def promote(config: Config, source: str = STAGING, to: str = PRODUCTION, release: str | None = None) -> Release:
    """Makes the live release of one channel, or `release`, live in another one too."""
    return _releases.promote(_releases.open_target(config), source, to, release)


def prune(config: Config, dry_run: bool = False) -> Pruned:
    """Deletes releases beyond `reindex.keep_releases` and `reindex.keep_days`."""
    from infra.pruning import prune as prune_releases

    keep = config.reindex.keep_releases
    if keep is None:
        raise UsageError("reindex.keep_releases is null, which keeps everything; say how many stay with --keep")
    return prune_releases(_releases.open_target(config), keep, config.reindex.keep_days, dry_run)


def releases(config: Config) -> Listing:
    """Returns all releases and refusals, the most recent first."""
    target = _releases.open_target(config)
    return Listing(_releases.list_releases(target), _releases.list_refusals(target))


def run(config: Config) -> RunReport:
    """Train, embed, index, check, publish.

    Raises:
      GateError: the searcher did not pass its check; nothing was published.
    """
    progress.say(f"train, embed, index, check and publish into {config.workspace}; what is done already is kept")
    workspace, target = Workspace(config.workspace), _releases.open_target(config)
    for place in (workspace, target):
        place.require_writable()  # fails now, not after the training
    seconds: dict[str, float] = {}
    reports: dict[str, dict[str, Any]] = {}

    def stage(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        progress.say(f"\n[{len(seconds) + 1}/5] {name}")
        start = time.monotonic()
        reports[name] = work()
        seconds[name] = round(time.monotonic() - start, 1)
        progress.say(
            f"  {name} is done after {seconds[name]:.1f} s: {workspace.url(KIND_OF_STAGE[name], reports[name]['id'])}"
        )
        return reports[name]

    encoder = stage("train", lambda: train(config))
    manifest = stage("embed", lambda: embed(config, encoder["id"]))
    build = stage("index", lambda: index(config, manifest["id"], encoder["id"]))
    report = stage("check", lambda: check(config, build["id"]))
    progress.say("\n[5/5] publish")
    release = _releases.publish(workspace, target, report["id"], revive=False)
    return RunReport(seconds, release, reports)


def status(config: Config, count: int = 10, lag: bool = False) -> Status:
    """Returns how re-indexing stands.

    Args:
      count: of runs to list, the latest first.
      lag: whether to list the corpus now; by default the lag is what the latest run found.
    """
    from infra.status import examine, with_plan

    found = examine(config, count)
    return with_plan(found, preview_reindex(config)) if lag else found


def require_healthy(found: Status, max_age: str | None = None) -> None:
    """Raises JobError where somebody must look: runs are stopped, or the index is older than `max_age` (`26h`)."""
    from infra.status import parse_age

    if faults := found.faults(parse_age(max_age) if max_age else None):
        raise JobError("; ".join(faults))


def metrics(config: Config) -> str:
    """Returns how re-indexing stands, in Prometheus' text format."""
    from infra.metrics import text

    return text(config)


def write_metrics(config: Config, path: Path) -> None:
    """Writes the metrics to a local file, for node_exporter's textfile collector; a reader never sees half of it."""
    path = path.expanduser().absolute()
    open_storage(str(path.parent)).write(path.name, metrics(config).encode())


def reindex(config: Config, *, trigger: str = "command", resume: bool = False, now: datetime | None = None) -> Run:
    """Brings the live release up to the corpus, if anything changed; see infra.reindex.run.reindex."""
    from infra.reindex.run import reindex as bring_up

    return bring_up(config, trigger=trigger, resume=resume, now=now)


def preview_reindex(config: Config) -> Plan:
    """Returns what `reindex` would do; nothing is changed."""
    from infra.reindex.run import preview

    return preview(config)


def search(config: Config, query: str, k: int = 10, release: str | None = None, channel: str = PRODUCTION) -> list[Hit]:
    """Answers a query from a published file, through the Task Library.

    Args:
      query: a text, or the path of an image file.
      k: number of hits.
      release: id of a release; a folder or URL of releases, whose live one is used; default: the live one.
      channel: whose live one is meant.
    """
    return search_many(config, [query], k, release, channel)[0]


def search_many(
    config: Config, queries: Sequence[str], k: int = 10, release: str | None = None, channel: str = PRODUCTION
) -> list[list[Hit]]:
    """Like `search`, for several queries."""
    from serving_check.search import Searcher

    folder = open_release(config, release, channel)[1]
    answers: list[list[Hit]] = []
    with contextlib.ExitStack() as stack:
        opened: dict[str, Searcher] = {}
        for query in queries:
            image = is_image_query(query)
            name = IMAGE_SEARCHER if image else TEXT_SEARCHER
            if name not in opened:
                opened[name] = stack.enter_context(Searcher(folder / name))
            answers.append(opened[name].search_image(Path(query), k) if image else opened[name].search_text(query, k))
    return answers


def open_release(config: Config, release: str | None = None, channel: str = PRODUCTION) -> tuple[Release, Path]:
    """Returns a release and a local folder with its files; see `search` for the arguments."""
    if release and ("/" in release or Path(release).is_dir()):
        return _releases.find_release(Workspace(release), channel=channel)
    return _releases.find_release(_releases.open_target(config), release, channel)


def is_image_query(query: str) -> bool:
    """Whether a query is the path of a file, and so an image."""
    try:
        return Path(query).is_file()
    except (OSError, ValueError):  # a text can be too long for a path
        return False


def corpus_images(config: Config, embeddings: str, ids: set[str]) -> dict[str, Path]:
    """Returns the local files of items of an embedding run, by id; remote or unknown ones are left out."""
    workspace = Workspace(config.workspace)
    if not workspace.committed("embeddings", embeddings):
        return {}
    manifest = Manifest.model_validate(workspace.marker("embeddings", embeddings))
    records = read_shards(workspace, manifest)
    return {record.id: Path(record.uri) for record in records if record.id in ids and "://" not in record.uri}


def write_contact_sheet(
    config: Config,
    queries: Sequence[str],
    answers: Sequence[Sequence[Hit]],
    release: str | None = None,
    expected: Sequence[str] = (),
    path: Path = Path("contact-sheet.png"),
    channel: str = PRODUCTION,
) -> Path:
    """Draws queries and the images of their hits; an image that is not in the workspace is left grey.

    Args:
      expected: id of each query's own image, which is framed.

    Returns:
      `path`.
    """
    from infra.contact_sheet import Row, Tile, draw_contact_sheet

    found, _ = open_release(config, release, channel)
    images = corpus_images(config, found.provenance["embeddings"], {hit.id for hits in answers for hit in hits})
    own = [*expected, *[""] * (len(queries) - len(expected))]
    rows = [
        Row(query, [Tile(images.get(hit.id), hit.score, hit.id == target) for hit in hits])
        for query, hits, target in zip(queries, answers, own, strict=True)
    ]
    draw_contact_sheet(f"release {found.id}: {found.figures['images']} images", rows, path)
    return path


def _choose(config: Config, kind: Kind, id: str | None) -> str:
    """Returns `id`, or the workspace's only artifact of that kind."""
    if id:
        return id
    ids = Workspace(config.workspace).ids(kind)
    if len(ids) == 1:
        return ids[0]
    option = f"--{kind if kind == 'embeddings' else kind.removesuffix('s')}"
    held = f"{len(ids)} {kind} ({', '.join(ids)})" if ids else f"no {kind}"
    raise UsageError(f"workspace {config.workspace} holds {held}; choose one with {option}")
