"""Decides whether TFLite files can become a bundle's encoders, and how, before anything is run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from searchforge.artifacts.encoder import InputKind
from searchforge.errors import UsageError
from searchforge.preprocessing import Preprocessing
from trainer.importing.foreign_model import bert_inputs

_MIN_DIM, _MAX_DIM = 2, 4096

_TOKENIZERS = {
    "BertTokenizerOptions": "BERT tokenizer",
    "SentencePieceTokenizerOptions": "SentencePiece tokenizer",
    "RegexTokenizerOptions": "regular expression tokenizer",
}
_DELIMITERS = r"[^\w\']+"
"""Regular expression of the delimiters that TensorFlow's text models with a vocabulary use."""


@dataclass(frozen=True)
class EncoderFiles:
    """TFLite encoders to import, and what their own metadata does not say.

    Attributes:
      text, image: TFLite files; at least one.
      vocabulary: Vocabulary of the text encoder's tokenizer, one token a line; None if its metadata has one, or if it
        takes strings.
      regex: Regular expression of the delimiters between tokens; None for the BERT tokenizer.
      preprocessing: Preprocessing string of the image encoder (searchforge.preprocessing); None if its metadata states
        the normalisation.
      text_output, image_output: Name of the tensor with the embedding, for a model with several outputs.
      license: License of the encoder; None to take it from the metadata.
    """

    text: Path | None = None
    image: Path | None = None
    vocabulary: Path | None = None
    regex: str | None = None
    preprocessing: str | None = None
    text_output: str | None = None
    image_output: str | None = None
    license: str | None = None

    @property
    def by_kind(self) -> dict[InputKind, Path]:
        """The TFLite files that were given, by the kind of their input."""
        given: tuple[tuple[InputKind, Path | None], ...] = (("text", self.text), ("image", self.image))
        return {kind: path for kind, path in given if path}


def _listed(tensors: list[dict[str, Any]]) -> str:
    """Returns the name, type and shape of each tensor, for messages."""
    return ", ".join(f"{tensor['name']} {tensor['type']}{tensor['shape']}" for tensor in tensors)


def chosen_output(path: Path, described: dict[str, Any], name: str | None, option: str) -> str:
    """Returns the name of the output with the embedding.

    Raises:
      UsageError: There are several outputs, or the output cannot be an embedding.
    """
    outputs = {tensor["name"]: tensor for tensor in described["outputs"]}
    listed = _listed(described["outputs"])
    if not outputs:
        raise UsageError(f"{path.name} has no output; expected one vector for each input")
    if name is None and len(outputs) > 1:
        raise UsageError(f"{path.name} has {len(outputs)} outputs ({listed}); name the embedding with {option}")
    if name is not None and name not in outputs:
        raise UsageError(f"{path.name} has no output {name!r}; it has {listed}")
    found = outputs[name] if name is not None else next(iter(outputs.values()))
    sizes = [size for size in found["shape"] if size != 1]
    if len(sizes) != 1 or not _MIN_DIM <= sizes[0] <= _MAX_DIM:
        raise UsageError(
            f"output {found['name']} of {path.name} is {found['shape']}; expected one vector for each input, of "
            f"{_MIN_DIM} to {_MAX_DIM} numbers, such as [1, 128]: export the pooled output"
        )
    if found["type"] not in ("FLOAT32", "UINT8", "INT8"):
        raise UsageError(f"output {found['name']} of {path.name} is {found['type']}; expected FLOAT32, UINT8 or INT8")
    return str(found["name"])


def text_request(files: EncoderFiles, described: dict[str, Any]) -> dict[str, Any]:
    """Returns the request that rewrites the text encoder, after validating its inputs and tokenizer."""
    assert files.text
    name, inputs = files.text.name, described["inputs"]
    types = [tensor["type"] for tensor in inputs]
    listed = _listed(inputs)
    if any(len(tensor["shape"]) == 4 for tensor in inputs):
        raise UsageError(f"{name} takes images ({listed}); give it as the image encoder, with --image")
    regex = files.regex
    if described["tokenizer"]:
        if files.vocabulary or regex:
            raise UsageError(
                f"the metadata of {name} contains a {tokenizer(files, described)} with its vocabulary; omit "
                "--vocabulary and --regex"
            )
    elif types == ["STRING"]:
        if files.vocabulary or regex:
            raise UsageError(f"{name} takes strings, so it needs no vocabulary; omit --vocabulary and --regex")
    elif not files.vocabulary:
        raise UsageError(f"{name} takes token ids ({listed}), but has no tokenizer metadata; give its --vocabulary")
    elif types == ["INT32"]:
        regex = regex or _DELIMITERS
    elif types == ["INT32"] * 3 and bert_inputs([tensor["name"] for tensor in inputs]):
        if regex:
            raise UsageError(f"{name} takes the inputs of a BERT model ({listed}); omit --regex")
    else:
        raise UsageError(
            f"{name} takes {listed}; the Task Library runs text encoders that take one string, token ids int32, or "
            "the int32 inputs ids, mask and segment_ids of a BERT model"
        )
    if files.vocabulary:
        _require_vocabulary(files.vocabulary, bert=len(types) == 3)
    output = chosen_output(files.text, described, files.text_output, "--text-output")
    vocabulary = str(files.vocabulary) if files.vocabulary else None
    return {"do": "rewrite_text", "output": output, "vocabulary": vocabulary, "regex": regex}


def tokenizer(files: EncoderFiles, described: dict[str, Any]) -> str:
    """Returns the name of the text encoder's tokenizer."""
    inputs = [tensor["type"] for tensor in described["inputs"]]
    given = "RegexTokenizerOptions" if len(inputs) == 1 else "BertTokenizerOptions"
    options = described["tokenizer"] or (given if files.vocabulary else None)
    return _TOKENIZERS.get(options, options) if options else "in the model"


def _require_vocabulary(path: Path, bert: bool) -> None:
    try:
        tokens = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8; expected a vocabulary with one token a line") from None
    required = {"[CLS]", "[SEP]", "[UNK]"} if bert else {"<UNKNOWN>"}
    lines = {line.partition(" ")[0] for line in tokens}
    if missing := sorted(required - lines):
        form = "one token a line" if bert else "one token and its id a line"
        raise UsageError(f"{path} lacks {', '.join(missing)}; expected the vocabulary of the encoder, with {form}")


def image_preprocessing(files: EncoderFiles, described: dict[str, Any]) -> str:
    """Returns the preprocessing string of the image encoder.

    Raises:
      UsageError: The input is not an image of a fixed size, or its scaling is unknown or contradictory.
    """
    assert files.image
    name, inputs = files.image.name, described["inputs"]
    listed = _listed(inputs)
    if len(inputs) != 1 or len(inputs[0]["shape"]) != 4:
        raise UsageError(f"{name} takes {listed}; expected one image [1, height, width, 3]")
    (tensor,) = inputs
    batch, height, width, channels = tensor["shape"]
    if batch != 1 or channels != 3 or min(height, width) < 2 or tensor["type"] not in ("FLOAT32", "UINT8"):
        raise UsageError(
            f"{name} takes {listed}; expected one image [1, height, width, 3] of a fixed size, FLOAT32 or UINT8"
        )
    given = Preprocessing.parse(files.preprocessing) if files.preprocessing else None
    if given and (given.height, given.width) != (height, width):
        raise UsageError(f"the preprocessing resizes to {given.height} x {given.width}, but {name} takes {listed}")
    stated = described["normalization"]
    if tensor["type"] == "UINT8":  # the Task Library passes pixels on as they are
        found: Preprocessing | None = Preprocessing(height, width, low=0.0, high=255.0)
    else:
        found = Preprocessing.standardizing(height, width, **stated) if stated else None
    if found is None and given is None:
        raise UsageError(
            f"the metadata of {name} does not state how pixels are scaled; give it with --preprocessing, for example "
            f"'decode|resize({height},{width},bilinear)|scale(-1,1)'"
        )
    if found and given and (given.low, given.high) != (found.low, found.high):
        raise UsageError(f"--preprocessing scales as in {given}, but {name} states {found}; omit the option")
    return str(given or found)
