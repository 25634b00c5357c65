"""Inference backends: the image encoder on LiteRT or TensorFlow, the text encoder on TensorFlow.

LiteRT, the runtime of TensorFlow Lite, is the fastest on a CPU: it starts in a fraction of TensorFlow's time and
memory, gives each thread its own interpreter, and runs one image at a time, so that an embedding does not depend on the
rest of a batch. TensorFlow can use a GPU, and runs images in batches.
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
from searchforge.errors import JobError, UsageError
from searchforge.native_output import discarded_stderr, import_quietly
from searchforge.preprocessing import Preprocessing

Backend = Literal["litert", "tensorflow"]

MIN_COSINE = 0.999
"""Minimum cosine similarity between the outputs of a bundle's TFLite and SavedModel image encoders for using LiteRT."""

_GPU_DEVICE = Path("/dev/nvidiactl")


class Model(ABC):
    """A thread-safe encoder.

    Attributes:
      batch_size: Maximum number of inputs per call.
    """

    batch_size: int

    @abstractmethod
    def __call__(self, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Embeds images ([h, w, 3] uint8, all of the encoder's input size) or texts.

        Returns:
          [n, dim] float32, L2-normalised.
        """


class LiteRTImageModel(Model):
    """A bundle's image_encoder.tflite, run one image at a time."""

    batch_size = 1

    def __init__(self, path: Path, preprocessing: Preprocessing) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._create = lambda: Interpreter(str(path), num_threads=1)
        self._preprocessing = preprocessing
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with discarded_stderr():  # the first interpreter of a process prints a notice
            self._idle.put(self._new_interpreter())

    def __call__(self, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
        try:
            interpreter = self._idle.get_nowait()
        except queue.Empty:
            interpreter = self._new_interpreter()
        input_index = interpreter.get_input_details()[0]["index"]
        output_index = interpreter.get_output_details()[0]["index"]
        try:
            embeddings = []
            for image in inputs:
                interpreter.set_tensor(input_index, self._preprocessing.scale(image)[None])
                interpreter.invoke()
                embeddings.append(interpreter.get_tensor(output_index)[0])
        finally:
            self._idle.put(interpreter)
        return np.stack(embeddings)

    def _new_interpreter(self) -> Any:
        interpreter = self._create()
        interpreter.allocate_tensors()
        return interpreter


class TensorFlowModel(Model):
    """A bundle's SavedModel. Batches that do not fit into the device's memory are halved."""

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


def choose_backend(requested: str, modality: Modality, bundle: EncoderInfo) -> Backend:
    """Resolves `auto` to LiteRT on a CPU if the bundle's TFLite and SavedModel encoders agree, else to TensorFlow.

    Raises:
      UsageError: LiteRT was requested but cannot run this encoder.
    """
    has_tflite = modality == "images" and IMAGE_TFLITE in bundle.files
    if requested == "litert" and not has_tflite:
        reason = "texts are tokenized in TensorFlow" if modality == "texts" else f"it has no {IMAGE_TFLITE}"
        raise UsageError(
            f"embed.backend litert cannot embed {modality} with encoder {bundle.id}: {reason}; set it to auto"
        )
    if requested != "auto":
        return "litert" if requested == "litert" else "tensorflow"
    agreement = (bundle.report.get("agreement") or {}).get("image") or {}
    agrees = agreement.get("min_cosine", 0.0) >= MIN_COSINE
    return "litert" if has_tflite and agrees and not has_gpu() else "tensorflow"


def has_gpu() -> bool:
    """Returns whether TensorFlow would run on a GPU on this machine."""
    if not _GPU_DEVICE.exists():  # avoids importing TensorFlow
        return False
    try:
        import tensorflow as tf
    except ImportError:  # an environment that only submits jobs
        return False
    return bool(tf.config.list_physical_devices("GPU"))


def load_model(folder: Path, modality: Modality, backend: Backend, preprocessing: str, batch_size: int) -> Model:
    """Loads the encoder for a modality from the bundle in `folder`.

    Raises:
      JobError: The encoder cannot be loaded.
    """
    name = {"images": IMAGE_SAVED_MODEL, "texts": TEXT_SAVED_MODEL}[modality]
    try:
        if backend == "litert":
            return LiteRTImageModel(folder / IMAGE_TFLITE, Preprocessing.parse(preprocessing))
        return TensorFlowModel(folder / name, modality, batch_size)
    except (OSError, ValueError) as error:
        raise JobError(f"the encoder in {folder} cannot be loaded ({error}); train it again") from error
