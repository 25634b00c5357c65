"""Every fault of a configuration is located; files and options take precedence over presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from searchforge.config import Config, Section, load_config
from searchforge.errors import UsageError


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "searchforge.yaml"
    path.write_text(text)
    return path


def test_the_defaults_are_valid() -> None:
    assert load_config() == Config()


def test_overrides_take_precedence_over_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, "train: {epochs: 3, seed: 7}")
    config = load_config(path, {"train.epochs": 5, "check.min_recall_at_10": None})
    assert (config.train.epochs, config.train.seed, config.check.min_recall_at_10) == (5, 7, None)


def test_an_empty_section_has_the_defaults(tmp_path: Path) -> None:
    assert load_config(_write(tmp_path, "train:\n"), {"train.seed": 3}).train.seed == 3


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    text = "workspace: gs://bucket/x\ndata: {captions: [a.json, /b.json], images: photos}"
    config = load_config(_write(tmp_path, f"{text}\ntrain: {{image_tower: 'saved_model:tower'}}"))
    assert config.train.image_tower == f"saved_model:{tmp_path / 'tower'}"
    assert config.workspace == "gs://bucket/x"
    assert config.data.images == str(tmp_path / "photos")
    assert config.data.captions == (str(tmp_path / "a.json"), "/b.json")


def test_explicit_values_take_precedence_over_a_preset() -> None:
    config = load_config(None, {"train.preset": "recipe2022", "train.epochs": 2, "index.preset": "recipe2022"})
    assert (config.train.epochs, config.train.batch_size, config.train.learn_temperature) == (2, 256, False)
    assert config.check.min_recall_at_10 == 0.6
    assert (config.index.partitions_searched, config.index.lut_type) == (4, "int8")


def test_every_fault_is_located(tmp_path: Path) -> None:
    path = _write(tmp_path, "train: {epoch: 3, workers: 0}\nindex: {lut_type: float64}\nchekc: {}")
    with pytest.raises(UsageError) as error:
        load_config(path)
    message = str(error.value)
    assert str(path) in message
    assert "train.epoch: unknown key; allowed here: preset," in message
    assert "train.workers: " in message and "got 0" in message
    assert "index.lut_type: Input should be 'float', 'int16' or 'int8'; got 'float64'" in message
    assert "chekc: unknown key; allowed here: workspace," in message


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "just text", "train: 3", "\x00"])
def test_other_files_are_rejected(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        load_config(_write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("train: {epochs: 3}\ndata: {}\ntrain: {dim: 64}", "train", (1, 3)),
        ("train:\n  dim: 1\n  dim: 2", "dim", (2, 3)),
    ],
)
def test_a_key_that_is_given_twice_is_rejected(tmp_path: Path, text: str, key: str, lines: tuple[int, int]) -> None:
    first, second = lines
    with pytest.raises(UsageError, match=rf"key '{key}' is already in line {first}; merge the two\n.*line {second},"):
        load_config(_write(tmp_path, text))


def test_a_value_of_a_merged_mapping_may_be_replaced(tmp_path: Path) -> None:
    text = "index: {<<: {seed: 5, queries: 7}, seed: 4}"
    assert load_config(_write(tmp_path, text)).index.seed == 4


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize("tower", ["pypi:other", "efficientnet", "pypi:minilm-l6"])
def test_an_unknown_tower_is_rejected(tower: str) -> None:
    with pytest.raises(UsageError, match=r"expected pypi:efficientnet-lite0 .*, hub:"):
        load_config(None, {"train.image_tower": tower})


def test_a_split_cannot_train_and_be_held_out() -> None:
    with pytest.raises(UsageError, match=r"data: .*val cannot be in both train_splits and heldout_splits"):
        load_config(None, {"data.train_splits": ["train", "val"]})


def test_searching_more_partitions_than_exist_is_rejected() -> None:
    with pytest.raises(UsageError, match=r"index: .*partitions_searched is 9, but partitions is 8; .* at most 8"):
        load_config(None, {"index.partitions": 8, "index.partitions_searched": 9})


def test_more_partitions_than_training_images_are_rejected() -> None:
    with pytest.raises(UsageError, match=r"index: .*partitions is 64, but they are trained on 30 images"):
        load_config(None, {"index.partitions": 64, "index.training_sample": 30})


@pytest.mark.parametrize(("written", "size"), [("50MB", 50_000_000), ("1.5 GiB", 3 * 2**29), (700, 700), ("700", 700)])
def test_sizes_may_have_units(written: str | int, size: int) -> None:
    assert load_config(None, {"index.max_index_size": written}).index.max_index_size == size


@pytest.mark.parametrize("written", ["50 Mb/s", "many", "-1", "0", ""])
def test_other_sizes_are_rejected(written: str) -> None:
    with pytest.raises(UsageError, match=r"index\.max_index_size"):
        load_config(None, {"index.max_index_size": written})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("train.heads", "train.ensemble_size"),
        ("train.hub_correction", "train.hubness_correction"),
        ("embed.base", "embed.reuse_from"),
        ("index.base", "index.reuse_from"),
        ("index.lookup", "index.lut_type"),
        ("index.parallel", "index.anisotropic_weight"),
    ],
)
def test_a_renamed_key_is_rejected_with_its_current_name(old: str, new: str) -> None:
    with pytest.raises(UsageError, match=f"{old}: unknown key; it was renamed to {new}"):
        load_config(overrides={old: 1})


def test_ids_depend_only_on_values_that_differ_from_the_defaults() -> None:
    sections = [value for value in vars(Config()).values() if isinstance(value, Section)]
    assert sections and all(section.changed() == {} for section in sections)
    config = load_config(None, {"train.epochs": 5, "train.workers": 3, "index.recall_at_10": 0.9, "check.queries": 7})
    assert config.train.changed({"workers"}) == {"epochs": 5}
    assert config.index.changed() == {"recall_at_10": 0.9}
    assert config.check.changed() == {"queries": 7}
