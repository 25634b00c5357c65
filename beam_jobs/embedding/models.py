"""Inference backends: the image encoder on LiteRT or TensorFlow, the text encoder on TensorFlow or the Task Library.

LiteRT, the runtime of TensorFlow Lite, is the fastest on a CPU: it starts in a fraction of TensorFlow's time and
memory, gives each thread its own interpreter, and runs one image at a time, so that an embedding does not depend on the
rest of a batch. TensorFlow can use a GPU, and runs images in batches. The Task Library runs text encoders that have no
SavedModel, one text at a time, in a process for each thread.
"""

from __future__ import annotations

import contextlib
import queue
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from searchforge.artifacts.encoder import SAVED_MODELS, TFLITE_FILES, EncoderInfo, InputKind
from searchforge.artifacts.litert import embed_image, open_interpreter
from searchforge.artifacts.manifest import Modality
from searchforge.errors import JobError, UsageError
from searchforge.native_output import discarded_stderr, import_quietly
from searchforge.preprocessing import Preprocessing
from searchforge.processes import isolated, task_library

Resource = TypeVar("Resource")

Backend = Literal["litert", "tensorflow", "task_library"]

MIN_COSINE = 0.999
"""Minimum cosine similarity between the outputs of a bundle's TFLite and SavedModel image encoders for using LiteRT."""

_KINDS: dict[Modality, InputKind] = {"images": "image", "texts": "text"}

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


class _Pool(Generic[Resource]):
    """Resources that one thread at a time uses; there are as many as were in use at once."""

    def __init__(self, create: Callable[[], Resource]) -> None:
        self._create = create
        self._idle: queue.SimpleQueue[Resource] = queue.SimpleQueue()
        self._idle.put(create())

    @contextlib.contextmanager
    def borrowed(self) -> Iterator[Resource]:
        """Yields an idle resource, or another one if there is none."""
        try:
            resource = self._idle.get_nowait()
        except queue.Empty:
            resource = self._create()
        try:
            yield resource
        finally:
            self._idle.put(resource)


class LiteRTImageModel(Model):
    """A bundle's image_encoder.tflite, run one image at a time."""

    batch_size = 1

    def __init__(self, path: Path, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing
        with discarded_stderr():  # the first interpreter of a process prints a notice
            self._interpreters = _Pool(lambda: open_interpreter(path))

    def __call__(self, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
        with self._interpreters.borrowed() as interpreter:
            return np.stack([embed_image(interpreter, self._preprocessing, image) for image in inputs])


class TaskLibraryTextModel(Model):
    """A bundle's text_encoder.tflite, run by the Task Library in one process for each concurrent call."""

    batch_size = 64

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sessions = _Pool(lambda: isolated.Session(task_library.MODULE))

    def __call__(self, inputs: Sequence[Any]) -> npt.NDArray[np.float32]:
        with self._sessions.borrowed() as session:
            return task_library.embed_texts(self._path, inputs, session)[0]


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
    """Returns the requested backend; for `auto`, the fastest one that runs the bundle's encoder.

    That is LiteRT for images on a CPU, if the TFLite encoder agrees with the SavedModel or there is no SavedModel, and
    TensorFlow otherwise; texts without a SavedModel are embedded by the Task Library.

    Raises:
      UsageError: The bundle does not embed this modality, or not with the requested backend.
    """
    kind = _KINDS[modality]
    available = _available_backends(kind, bundle)
    if not available:
        raise UsageError(
            f"encoder {bundle.id} does not embed {modality}, only {' and '.join(f'{kind}s' for kind in bundle.kinds)}"
        )
    if requested != "auto":
        for backend in available:
            if backend == requested:
                return backend
        raise UsageError(
            f"embed.backend {requested} cannot embed {modality} with encoder {bundle.id}, which runs on "
            f"{' or '.join(available)}; set it to auto"
        )
    if "tensorflow" not in available:
        return available[0]
    agreement = (bundle.report.get("agreement") or {}).get(kind) or {}
    agrees = agreement.get("min_cosine", 0.0) >= MIN_COSINE
    return "litert" if "litert" in available and agrees and not has_gpu() else "tensorflow"


def _available_backends(kind: InputKind, bundle: EncoderInfo) -> list[Backend]:
    found: list[Backend] = []
    if kind in bundle.kinds:
        found.append("litert" if kind == "image" else "task_library")
    if bundle.has_saved_model(kind):
        found.append("tensorflow")
    return found


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
    kind = _KINDS[modality]
    try:
        if backend == "litert":
            return LiteRTImageModel(folder / TFLITE_FILES[kind], Preprocessing.parse(preprocessing))
        if backend == "task_library":
            return TaskLibraryTextModel(folder / TFLITE_FILES[kind])
        return TensorFlowModel(folder / SAVED_MODELS[kind], modality, batch_size)
    except (OSError, ValueError) as error:
        raise JobError(f"the encoder in {folder} cannot be loaded ({error}); train or import it again") from error
