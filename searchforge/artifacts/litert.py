"""Runs an image encoder of a bundle with LiteRT, the runtime of TensorFlow Lite, on one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from searchforge.preprocessing import Preprocessing


def open_interpreter(model: Path) -> Any:
    """Returns an interpreter of a TFLite file, which one thread at a time may use.

    Raises:
      ValueError: LiteRT cannot run the file.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(model), num_threads=1)
    interpreter.allocate_tensors()
    return interpreter


def embed_image(
    interpreter: Any, preprocessing: Preprocessing, image: npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    """Returns the embedding, [dim], of an image of the encoder's input size, [h, w, 3]."""
    source = interpreter.get_input_details()[0]
    scaled = preprocessing.scale(image)[None]
    interpreter.set_tensor(source["index"], scaled.astype(source["dtype"], copy=False))
    interpreter.invoke()
    embedding: npt.NDArray[np.float32] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]
    return embedding
