"""TFLite encoders of every kind become bundles that embed as the files do; useless ones are refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_TFLITE
from searchforge.artifacts.workspace import Workspace
from searchforge.errors import UsageError
from searchforge.processes import task_library
from tests.trainer.importing.foreign_models import DIM, SIDE, files, image_vector, text_vector
from trainer.importing.import_encoder import import_encoder
from trainer.importing.requirements import EncoderFiles

TEXTS = ["red", "a green dog", "two children playing in the snow", "flowers on a table"]
SCALE = f"decode|resize({SIDE},{SIDE},bilinear)|scale(-1,1)"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(str(tmp_path / "workspace"))


def _given(**names: str) -> EncoderFiles:
    """Returns the files to import; arguments are those of EncoderFiles, with names of test files for paths."""
    paths = {"text", "image", "vocabulary"}
    return EncoderFiles(**{key: files() / value if key in paths else value for key, value in names.items()})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "names",
    [
        {"text": "bert.tflite", "vocabulary": "bert_vocab.txt"},
        {"text": "regex.tflite"},
        {"text": "regex_plain.tflite", "vocabulary": "regex_vocab.txt"},
        {"text": "two_outputs.tflite", "vocabulary": "regex_vocab.txt", "text_output": "Identity"},
    ],
)
def test_a_text_encoder_embeds_as_its_file_does_and_normalises(names: dict[str, str], workspace: Workspace) -> None:
    info = import_encoder(workspace, _given(**names))
    assert (info.kinds, info.dim, info.text_tower, info.image_tower) == (("text",), DIM, names["text"], "")
    found = task_library.embed_texts(workspace.local("encoders", info.id) / TEXT_TFLITE, TEXTS)[0]
    np.testing.assert_allclose(found, [text_vector(text) for text in TEXTS], atol=1e-5)


def test_a_text_encoder_that_takes_a_string_runs_with_its_own_tokenizer(workspace: Workspace) -> None:
    info = import_encoder(workspace, _given(text="string.tflite"))
    assert (info.kinds, info.sequence_length) == (("text",), 0)
    model = workspace.local("encoders", info.id) / TEXT_TFLITE
    found = task_library.embed_texts(model, ["a red dog", "red a dog", "blue car"])[0]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)  # the encoder adds up the pieces
    assert found[0] @ found[2] < 0.99


def test_an_image_encoder_scales_each_channel_as_its_metadata_states(workspace: Workspace) -> None:
    info = import_encoder(workspace, _given(image="image.tflite"))
    assert info.preprocessing == (
        f"decode|resize({SIDE},{SIDE},bilinear)|scale([-2.1179,-2.03571,-1.80444],[2.24891,2.42857,2.64])"
    )
    assert info.license == "Apache-2.0"
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    found = task_library.embed_images(workspace.local("encoders", info.id) / IMAGE_TFLITE, pixels)[0]
    np.testing.assert_allclose(found, [image_vector(image) for image in pixels], atol=1e-4)


def test_a_quantized_image_encoder_gets_a_float_output_of_one_vector(workspace: Workspace) -> None:
    info = import_encoder(workspace, _given(image="image_uint8.tflite"))
    assert (info.dim, info.preprocessing) == (DIM, f"decode|resize({SIDE},{SIDE},bilinear)|scale(0,255)")
    pixels = np.random.default_rng(0).integers(0, 256, (4, SIDE, SIDE, 3), np.uint8)
    pixels[:2, ..., 0] = 250
    found = task_library.embed_images(workspace.local("encoders", info.id) / IMAGE_TFLITE, pixels)[0]
    assert found.shape == (4, DIM)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] > 0.99 > found[0] @ found[2]


def test_both_encoders_make_one_bundle_which_is_found_again(workspace: Workspace) -> None:
    given = _given(text="bert.tflite", vocabulary="bert_vocab.txt", image="image.tflite")
    info = import_encoder(workspace, given)
    assert info.kinds == ("text", "image")
    assert import_encoder(workspace, given) == info
    assert workspace.ids("encoders") == [info.id]
    other = import_encoder(workspace, _given(image="image.tflite"))
    assert other.fingerprint != info.fingerprint


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, "no encoder was given"),
        ({"text": "nothing.tflite"}, "does not exist"),
        ({"text": "bert_vocab.txt"}, "expected a TFLite model"),
        ({"text": "image.tflite"}, "takes images .* --image"),
        ({"image": "regex.tflite"}, r"takes ids INT32.*; expected one image \[1, height, width, 3\]"),
        ({"text": "bert.tflite"}, "has no tokenizer metadata; give its --vocabulary"),
        ({"text": "bert.tflite", "vocabulary": "regex_vocab.txt"}, r"lacks \[CLS\], \[SEP\], \[UNK\]"),
        ({"text": "regex_plain.tflite", "vocabulary": "bert_vocab.txt"}, "lacks <UNKNOWN>"),
        ({"text": "regex.tflite", "vocabulary": "regex_vocab.txt"}, "omit --vocabulary"),
        ({"text": "string.tflite", "vocabulary": "regex_vocab.txt"}, "takes strings"),
        ({"image": "image.tflite", "vocabulary": "regex_vocab.txt"}, "without a text encoder"),
        ({"text": "two_outputs.tflite", "vocabulary": "regex_vocab.txt"}, "has 2 outputs .* --text-output"),
        (
            {"text": "two_outputs.tflite", "vocabulary": "regex_vocab.txt", "text_output": "none"},
            "has no output 'none'; it has Identity",
        ),
        (
            {"text": "two_outputs.tflite", "vocabulary": "regex_vocab.txt", "text_output": "Identity_1"},
            r"is \[1, 16, 96\]; expected one vector for each input",
        ),
        ({"image": "image_plain.tflite"}, "does not state how pixels are scaled"),
        ({"image": "image.tflite", "preprocessing": SCALE}, "omit the option"),
        ({"image": "image.tflite", "preprocessing": SCALE.replace("24", "32")}, "resizes to 32 x 32"),
        ({"image": "image.tflite", "preprocessing": "crop"}, "invalid preprocessing 'crop'"),
        ({"image": "nan.tflite", "preprocessing": SCALE}, "numbers that are not finite"),
        ({"image": "zeros.tflite", "preprocessing": SCALE}, "vectors of zeros"),
        ({"image": "constant.tflite", "preprocessing": SCALE}, "8 different images as the same vector"),
        (
            {"text": "regex.tflite", "image": "narrow.tflite", "preprocessing": SCALE},
            "in 96 dimensions and .* in 32; expected encoders that embed into the same space",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_stored(
    names: dict[str, str], message: str, workspace: Workspace
) -> None:
    with pytest.raises(UsageError, match=message):
        import_encoder(workspace, _given(**names))
    assert workspace.all_ids("encoders") == []


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_file_is_refused_or_imported_but_never_crashes(
    seed: int, workspace: Workspace, tmp_path: Path
) -> None:
    random, data = np.random.default_rng(seed), bytearray((files() / "image.tflite").read_bytes())
    if seed % 3 == 0:
        del data[random.integers(len(data)) :]
    else:
        for position in random.integers(0, len(data), 20):
            data[position] = random.integers(256)
    path = tmp_path / "damaged.tflite"
    path.write_bytes(data)
    try:
        import_encoder(workspace, EncoderFiles(image=path))
    except UsageError as error:
        assert "damaged.tflite" in str(error)
        assert workspace.all_ids("encoders") == []
