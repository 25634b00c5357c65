"""Corruptions of the encoders in a searcher, and of their metadata."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from indexer.device.folding import fold_matrix
from searchforge.artifacts.encoder import IMAGE_TFLITE, TEXT_TFLITE
from searchforge.artifacts.searcher import IMAGE_SEARCHER, TEXT_SEARCHER
from searchforge.artifacts.tflite_graph import read_model, write_model
from tests.indexer.tiny_corpus import DIM
from tests.serving_check.searcher_parts import SearcherFile, weights
from tests.serving_check.specimen import Specimen, caught_by

_ENCODER_WEIGHTS = DIM * DIM + 1
"""Minimum number of values of the encoders' own matrices; the query map after them has fewer."""

_SCANN_INDEX_FILE = 6


def _of_model(name: str, change: Callable[[Specimen, Any], None]) -> Callable[[Specimen], None]:
    return lambda specimen: specimen.change_file(
        name, lambda file: file.change_model(lambda model: change(specimen, model))
    )


def _shuffle_weights(specimen: Specimen, model: Any) -> None:
    """Turns the model into another encoder of the same shape."""
    for buffer in weights(model, _ENCODER_WEIGHTS):
        values = buffer.data.view("<f4").copy()
        specimen.random.shuffle(values)
        buffer.data = values.view(np.uint8)


def _scale_weights(specimen: Specimen, model: Any) -> None:
    """Turns the model into the encoder of a later training step, whose embeddings differ a little."""
    for buffer in weights(model, _ENCODER_WEIGHTS):
        values = buffer.data.view("<f4")
        buffer.data = (values * specimen.random.normal(1, 0.3, values.shape).astype("<f4")).view(np.uint8)


@caught_by("encoders")
def the_text_encoder_is_another_one_of_the_same_shape(specimen: Specimen) -> None:
    _of_model(TEXT_SEARCHER, _shuffle_weights)(specimen)


@caught_by("encoders")
def the_image_encoder_is_another_one_of_the_same_shape(specimen: Specimen) -> None:
    _of_model(IMAGE_SEARCHER, _shuffle_weights)(specimen)


@caught_by("model")
def the_text_encoder_is_of_a_later_training_step(specimen: Specimen) -> None:
    _of_model(TEXT_SEARCHER, _scale_weights)(specimen)


@caught_by("model")
def the_image_encoder_is_of_a_later_training_step(specimen: Specimen) -> None:
    _of_model(IMAGE_SEARCHER, _scale_weights)(specimen)


@caught_by("encoders")
def a_weight_of_the_image_encoder_is_not_a_number(specimen: Specimen) -> None:
    def poison(specimen: Specimen, model: Any) -> None:
        (buffer,) = weights(model, _ENCODER_WEIGHTS)
        values = buffer.data.view("<f4").copy()
        values[specimen.random.integers(values.size)] = np.nan
        buffer.data = values.view(np.uint8)

    _of_model(IMAGE_SEARCHER, poison)(specimen)


def _fold(name: str, matrix: np.ndarray) -> Callable[[Specimen], None]:
    """Returns a corruption that appends a matrix to a searcher's model."""

    def apply(file: SearcherFile) -> None:
        file.model = fold_matrix(file.model, matrix.astype(np.float32))

    return lambda specimen: specimen.change_file(name, apply)


@caught_by("encoders")
def the_dimensions_of_the_text_embedding_are_permuted(specimen: Specimen) -> None:
    _fold(TEXT_SEARCHER, np.roll(np.eye(DIM), int(specimen.random.integers(1, DIM)), axis=0))(specimen)


@caught_by("encoders")
def two_dimensions_of_the_image_embedding_are_swapped(specimen: Specimen) -> None:
    i, j = specimen.random.choice(DIM, 2, replace=False)
    matrix = np.eye(DIM)
    matrix[[i, j]] = matrix[[j, i]]
    _fold(IMAGE_SEARCHER, matrix)(specimen)


@caught_by("encoders")
def the_text_embedding_is_negated(specimen: Specimen) -> None:
    """All searches then return the farthest items."""
    _fold(TEXT_SEARCHER, -np.eye(DIM))(specimen)


@caught_by("encoders")
def the_image_embedding_is_all_zeros(specimen: Specimen) -> None:
    _fold(IMAGE_SEARCHER, np.zeros((DIM, DIM)))(specimen)


@caught_by("model", runs=True)
def the_text_embedding_has_fewer_dimensions(specimen: Specimen) -> None:
    _fold(TEXT_SEARCHER, np.eye(DIM)[: DIM // 2])(specimen)


@caught_by("encoders")
def the_text_encoder_lacks_the_query_map(specimen: Specimen) -> None:
    """The model is the bundle's encoder, with the index added."""
    _unmapped(specimen, TEXT_SEARCHER, TEXT_TFLITE)


@caught_by("encoders")
def the_image_encoder_lacks_the_query_map(specimen: Specimen) -> None:
    _unmapped(specimen, IMAGE_SEARCHER, IMAGE_TFLITE)


@caught_by("encoders")
def the_image_encoder_has_the_query_map_of_another_index(specimen: Specimen) -> None:
    other = specimen.workspace.local("searchers", specimen.other) / IMAGE_SEARCHER
    specimen.change_file(IMAGE_SEARCHER, lambda file: setattr(file, "model", SearcherFile.read(other).model))


@caught_by("encoders")
def the_query_map_of_the_text_encoder_is_rounded_to_integers(specimen: Specimen) -> None:
    """The query map is the only layer that is not in the bundle."""

    def round_map(specimen: Specimen, model: Any) -> None:
        graph = model.subgraphs[0]
        buffer = model.buffers[graph.tensors[graph.operators[-1].inputs[1]].buffer]
        buffer.data = np.rint(buffer.data.view("<f4")).astype("<f4").view(np.uint8)

    _of_model(TEXT_SEARCHER, round_map)(specimen)


def _unmapped(specimen: Specimen, searcher: str, encoder: str) -> None:
    """Removes the last layer of a searcher's model, which is the query map."""

    def unmap(specimen: Specimen, model: Any) -> None:
        graph = model.subgraphs[0]
        layer = graph.operators.pop()
        graph.outputs = [layer.inputs[0]]
        for signature in model.signatureDefs or []:
            for entry in signature.outputs or []:
                entry.tensorIndex = layer.inputs[0]

    _of_model(searcher, unmap)(specimen)


@caught_by("model")
def the_image_encoder_takes_another_size_of_image(specimen: Specimen) -> None:
    def reshape(specimen: Specimen, model: Any) -> None:
        graph = model.subgraphs[0]
        graph.tensors[graph.inputs[0]].shape = np.array([1, 4, 16, 3], np.int32)

    _of_model(IMAGE_SEARCHER, reshape)(specimen)


@caught_by("answers")
def the_model_has_no_operators(specimen: Specimen) -> None:
    _of_model(TEXT_SEARCHER, lambda specimen, model: setattr(model.subgraphs[0], "operators", []))(specimen)


@caught_by("metadata")
def the_model_has_no_metadata(specimen: Specimen) -> None:
    _of_model(TEXT_SEARCHER, lambda specimen, model: setattr(model, "metadata", None))(specimen)


@caught_by("metadata")
def the_image_normalisation_has_another_mean(specimen: Specimen) -> None:
    """The mean is 0 instead of 127.5, so the encoder sees pixels of 0 to 2 instead of -1 to 1."""
    _normalise(specimen, "mean", 0.0)


@caught_by("metadata")
def the_image_normalisation_has_another_std(specimen: Specimen) -> None:
    _normalise(specimen, "std", 255.0)


@caught_by("metadata")
def the_image_normalisation_is_missing(specimen: Specimen) -> None:
    specimen.change_file(IMAGE_SEARCHER, lambda file: file.change_metadata(_forget_units))


@caught_by("metadata")
def the_image_input_is_described_as_greyscale(specimen: Specimen) -> None:
    def grey(metadata: Any) -> None:
        tensor = metadata.subgraphMetadata[0].inputTensorMetadata[0]
        tensor.content.contentProperties.colorSpace = 2

    specimen.change_file(IMAGE_SEARCHER, lambda file: file.change_metadata(grey))


@caught_by("metadata")
def the_tokenizer_is_missing(specimen: Specimen) -> None:
    def forget(metadata: Any) -> None:
        metadata.subgraphMetadata[0].inputProcessUnits = None

    specimen.change_file(TEXT_SEARCHER, lambda file: file.change_metadata(forget))


@caught_by("metadata")
def the_inputs_of_the_text_encoder_are_described_in_another_order(specimen: Specimen) -> None:
    """Ids, mask and segments are then fed into the wrong tensors."""

    def rotate(metadata: Any) -> None:
        inputs = metadata.subgraphMetadata[0].inputTensorMetadata
        metadata.subgraphMetadata[0].inputTensorMetadata = inputs[1:] + inputs[:1]

    specimen.change_file(TEXT_SEARCHER, lambda file: file.change_metadata(rotate))


@caught_by("metadata")
def the_index_is_not_listed(specimen: Specimen) -> None:
    def unlist(metadata: Any) -> None:
        metadata.subgraphMetadata[0].outputTensorMetadata[0].associatedFiles = None

    specimen.change_file(TEXT_SEARCHER, lambda file: file.change_metadata(unlist))


@caught_by("metadata")
def the_index_is_listed_under_another_name(specimen: Specimen) -> None:
    def rename(metadata: Any) -> None:
        (file,) = metadata.subgraphMetadata[0].outputTensorMetadata[0].associatedFiles
        assert file.type == _SCANN_INDEX_FILE
        file.name = b"index.ldb"

    specimen.change_file(IMAGE_SEARCHER, lambda file: file.change_metadata(rename))


@caught_by("embeddings")
def the_bundles_image_encoder_is_not_the_one_that_embedded_the_corpus(specimen: Specimen) -> None:
    """The encoder was retrained under the same name; the searcher was built with it, the embeddings were not."""
    path = specimen.workspace.local("encoders", "tiny") / IMAGE_TFLITE
    bundle = read_model(path.read_bytes())
    _shuffle_weights(specimen, bundle)
    path.write_bytes(write_model(bundle, path.stat().st_size))
    (trained,) = weights(bundle, _ENCODER_WEIGHTS)

    def same_weights(specimen: Specimen, model: Any) -> None:
        (buffer,) = weights(model, _ENCODER_WEIGHTS)
        buffer.data = trained.data

    _of_model(IMAGE_SEARCHER, same_weights)(specimen)


def _normalise(specimen: Specimen, name: str, value: float) -> None:
    def change(metadata: Any) -> None:
        (unit,) = metadata.subgraphMetadata[0].inputTensorMetadata[0].processUnits
        setattr(unit.options, name, [value])

    specimen.change_file(IMAGE_SEARCHER, lambda file: file.change_metadata(change))


def _forget_units(metadata: Any) -> None:
    metadata.subgraphMetadata[0].inputTensorMetadata[0].processUnits = None
