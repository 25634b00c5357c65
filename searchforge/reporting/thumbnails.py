"""Encodes thumbnails of images."""

from __future__ import annotations

import io

from PIL import Image


def encode_jpeg(image: Image.Image, quality: int, smallest: bool = False) -> bytes:
    """Returns an RGB image as a JPEG without metadata such as comments and GPS positions.

    Args:
      image: Image, which loses its metadata.
      smallest: Whether to spend more time on a smaller file of the same quality.
    """
    image.info.clear()  # Pillow would write it to the JPEG
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, optimize=smallest)
    return file.getvalue()
