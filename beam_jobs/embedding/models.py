"""The encoders as the job runs them: an image encoder on LiteRT or TensorFlow, the text encoder on TensorFlow.

LiteRT (the runtime of TensorFlow Lite) is the fastest on a CPU: it starts in a fraction of TensorFlow's time and
memory, every thread has an interpreter of its own, and an image is embedded by itself, so that its embedding does not
depend on the images beside it. TensorFlow uses a GPU, and takes images in batches.
"""

from __future__ import annotations

import queue
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.encoder import IMAGE_SAVED_MODEL, IMAGE_TFLITE, TEXT_SAVED_MODEL, EncoderInfo
from searchforge.artifacts.manifest import Modality
from searchforge.console.options import import_quietly, stderr_closed
from searchforge.errors import JobError, UsageError
from searchforge.preprocessing import Preprocessing

Backend = Literal["litert", "tensorflow"]

MIN_COSINE = 0.999
"""Least agreement of a bundle's TFLite image encoder with its SavedModel, as training measured it."""

_GPU_DEVICE = Path("/dev/nvidiactl")


class Model(ABC):
    """An encoder; its calls may come from several threads.

    Attributes:
      batch_size: inputs that a call takes at most.
    """

    batch_size: int

    @abstractmethod
    def __call__(self, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Embeds images (uint8 [h, w, 3], all of the encoder's size) or texts.

        Returns:
          [n, dim] float32, L2-normalised.
        """


class LiteRTImageModel(Model):
    """A bundle's image_encoder.tflite, an image a call."""

    batch_size = 1

    def __init__(self, path: Path, preprocessing: Preprocessing) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._new = lambda: Interpreter(str(path), num_threads=1)
        self._preprocessing = preprocessing
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with stderr_closed():  # the first interpreter of a process says that it exists
            self._idle.put(self._allocated())

    def __call__(self, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
        try:
            interpreter = self._idle.get_nowait()
        except queue.Empty:
            interpreter = self._allocated()
        source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
        try:
            embeddings = []
            for image in inputs:
                interpreter.set_tensor(source, self._preprocessing.scale(image)[None])
                interpreter.invoke()
                embeddings.append(interpreter.get_tensor(target)[0])
        finally:
            self._idle.put(interpreter)
        return np.stack(embeddings)

    def _allocated(self) -> Any:
        interpreter = self._new()
        interpreter.allocate_tensors()
        return interpreter


class TensorFlowModel(Model):
    """A bundle's SavedModel. A batch that does not fit into the device's memory is halved."""

    def __init__(self, path: Path, modality: Modality, batch_size: int) -> None:
        import_quietly("tensorflow")
        import tensorflow as tf

        if modality == "texts":
            import tensorflow_text  # noqa: F401  # registers the tokenizer's operations

        self.batch_size = batch_size
        self._modality = modality
        self._loaded = tf.saved_model.load(str(path))  # owns the signature's variables
        self._encode = self._loaded.signatures["serving_default"]
        self._tf = tf

    def __call__(self, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
        try:
            result: npt.NDArray[np.float32] = self._run(inputs)
            return result
        except self._tf.errors.ResourceExhaustedError as error:
            if len(inputs) == 1:
                raise JobError(f"the encoder does not fit into the device's memory: {error.message}") from error
        self.batch_size = max(1, len(inputs) // 2)
        half = len(inputs) // 2
        return np.concatenate([self(inputs[:half]), self(inputs[half:])])

    def _run(self, inputs: Sequence[Any]) -> Any:
        if self._modality == "texts":
            return self._encode(texts=self._tf.constant(list(inputs)))["embedding"].numpy()
        return self._encode(images=self._tf.constant(np.stack(inputs)))["embedding"].numpy()


def choose_backend(asked: str, modality: Modality, bundle: EncoderInfo) -> Backend:
    """Returns what embeds: for `auto` LiteRT on a CPU, if the bundle's TFLite form agrees with its SavedModel.

    Raises:
      UsageError: LiteRT was asked for, and the bundle has no TFLite form of that encoder to run.
    """
    fitting = modality == "images" and IMAGE_TFLITE in bundle.files
    if asked == "litert" and not fitting:
        missing = "texts are tokenized in TensorFlow" if modality == "texts" else f"it has no {IMAGE_TFLITE}"
        raise UsageError(
            f"embed.backend litert cannot embed {modality} with encoder {bundle.id}: {missing}; set it to auto"
        )
    if asked != "auto":
        return "litert" if asked == "litert" else "tensorflow"
    agreement = (bundle.report.get("agreement") or {}).get("image") or {}
    agrees = agreement.get("min_cosine", 0.0) >= MIN_COSINE
    return "litert" if fitting and agrees and not has_gpu() else "tensorflow"


def has_gpu() -> bool:
    """Whether TensorFlow would run on a GPU here."""
    if not _GPU_DEVICE.exists():  # spares importing TensorFlow
        return False
    try:
        import tensorflow as tf
    except ImportError:  # where jobs are only submitted
        return False
    return bool(tf.config.list_physical_devices("GPU"))


def load_model(folder: Path, modality: Modality, backend: Backend, preprocessing: str, batch_size: int) -> Model:
    """Loads an encoder of the bundle in `folder`.

    Raises:
      JobError: it cannot be loaded.
    """
    name = {"images": IMAGE_SAVED_MODEL, "texts": TEXT_SAVED_MODEL}[modality]
    try:
        if backend == "litert":
            return LiteRTImageModel(folder / IMAGE_TFLITE, Preprocessing.parse(preprocessing))
        return TensorFlowModel(folder / name, modality, batch_size)
    except (OSError, ValueError) as error:
        raise JobError(f"the encoder in {folder} cannot be loaded ({error}); train it again") from error
