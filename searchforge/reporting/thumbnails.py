"""Small pictures of the corpus' images, for people to look at."""

from __future__ import annotations

import io

from PIL import Image


def encode_jpeg(image: Image.Image, quality: int, smallest: bool = False) -> bytes:
    """Returns an RGB image as a JPEG without what else its file said, such as comments and places.

    Args:
      image: what it knows of its file is forgotten.
      smallest: takes longer for a smaller result of the same quality.
    """
    image.info.clear()  # would be written again
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=smallest)
    return file.getvalue()
