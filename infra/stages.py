"""One function per stage; each imports its stage when called, and reuses what an earlier run finished."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.releases import releases
from infra.releases.channels import PRODUCTION
from searchforge.artifacts.manifest import Modality
from searchforge.artifacts.workspace import Kind, Workspace
from searchforge.config import Config
from searchforge.errors import UsageError
from searchforge.native_output import import_quietly

if TYPE_CHECKING:
    from beam_jobs.estimate import Estimate
    from beam_jobs.planning.listing import CorpusListing

KIND_OF_STAGE: dict[str, Kind] = {"train": "encoders", "embed": "embeddings", "index": "searchers", "check": "checks"}
"""Kind of artifact that each stage creates."""


def require_publishable(config: Config) -> None:
    """Raises UsageError if the configured index can be built but neither checked nor published."""
    if field := config.index.partition_by:
        raise UsageError(
            f"index.partition_by is {field!r}, which builds a separate index for each value; only a single index can "
            "be checked and published: remove the key, or run the stages train, embed and index by themselves"
        )


def train(config: Config) -> dict[str, Any]:
    """Trains a dual encoder on a Ray cluster; returns its encoder.json."""
    import_quietly("tensorflow")
    from trainer.train import train as train_encoder

    return train_encoder(config).model_dump()


def evaluate(config: Config, encoder: str | None = None, compare_forms: bool = False) -> dict[str, Any]:
    """Measures an encoder's retrieval on held-out captions; returns its report.json.

    Args:
      encoder: Id of the encoder; by default the one trained with the configuration's settings, or the workspace's only
        one.
      compare_forms: Whether to export and measure every TFLite form of the text encoder as well.
    """
    import_quietly("tensorflow")
    from trainer.evaluate import evaluate_bundle

    return evaluate_bundle(config, encoder, compare_forms).model_dump(mode="json")


def embed(
    config: Config, encoder: str | None = None, modality: Modality = "images", listing: CorpusListing | None = None
) -> dict[str, Any]:
    """Embeds the corpus with a Beam job, reusing an earlier run's embeddings; returns its MANIFEST.json.

    Args:
      listing: Listing of the corpus, which is consumed; by default, the corpus is listed now.
    """
    import_quietly("apache_beam")
    from beam_jobs.embed import embed as embed_corpus

    return embed_corpus(config, _choose_encoder(config, encoder), modality, listing).model_dump()


def compact(config: Config, embeddings: str | None = None) -> dict[str, Any]:
    """Copies a run's records, wherever their shards are, into shards of its own; returns its MANIFEST.json."""
    import_quietly("apache_beam")
    from beam_jobs.embed import compact as compact_run

    return compact_run(config, choose_artifact(config, "embeddings", embeddings)).model_dump()


def estimate(
    config: Config, encoder: str | None = None, modality: Modality = "images", workers: int = 1, sample: int = 256
) -> Estimate:
    """Estimates the time and size of embedding the corpus on `workers` machines from a sample."""
    import_quietly("apache_beam")
    from beam_jobs.estimate import estimate as estimate_run

    return estimate_run(config, _choose_encoder(config, encoder), modality, workers, sample)


def index(config: Config, embeddings: str | None = None, encoder: str | None = None) -> dict[str, Any]:
    """Builds both searchers from an embedding run; returns their build.json.

    Args:
      encoder: Id of the encoder for queries; by default the one that computed the embeddings.
    """
    from indexer.compiled_code import offer_cache

    offer_cache(config.workspace)
    from indexer.build import build_index

    return build_index(config, choose_artifact(config, "embeddings", embeddings), encoder)


def check(
    config: Config, searcher: str | None = None, channel: str = PRODUCTION, allow_removal: bool = False
) -> dict[str, Any]:
    """Checks a searcher with the Task Library and compares it with a channel's live release; returns report.json.

    Args:
      allow_removal: Whether it may have fewer items than `check.max_items_drop` allows.
    """
    from serving_check.check import check as check_searcher
    from serving_check.gates.live_comparison import LiveRelease

    target, live = releases.open_target(config), None
    if releases.live_release(target, channel):
        release, folder = releases.find_release(target, channel=channel)
        live = LiveRelease(release.id, release.created, release.provenance["searcher"], folder, release.figures)
    return check_searcher(config, choose_artifact(config, "searchers", searcher), live, allow_removal)


def _choose_encoder(config: Config, id: str | None) -> str:
    return choose_artifact(config, "encoders", id or config.encoder)


def choose_artifact(config: Config, kind: Kind, id: str | None) -> str:
    """Returns `id`, by default that of the workspace's only artifact of this kind.

    Raises:
      UsageError: There is no id, and the workspace has no artifact of this kind or several.
    """
    if id:
        return id
    ids = Workspace(config.workspace).ids(kind)
    if len(ids) == 1:
        return ids[0]
    if not ids:
        stage = next(stage for stage, created in KIND_OF_STAGE.items() if created == kind)
        raise UsageError(f"workspace {config.workspace} has no {kind}; run `searchforge {stage}` first")
    option = f"--{kind if kind == 'embeddings' else kind.removesuffix('s')}"
    raise UsageError(f"workspace {config.workspace} has {len(ids)} {kind} ({', '.join(ids)}); choose one with {option}")
