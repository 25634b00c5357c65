"""Items: what a corpus consists of, before anything of it is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One input of a corpus.

    Attributes:
      id: unique: the path below the folder (or below the fixed part of the glob), the list's id column (else its path
        or URI as the list gives it); of a member of an archive `<archive's id>/<member>`.
      uri: where it comes from, for people and for comparison: path, URI, `archive.tar!member`, `texts.csv:17`.
      file: path or URI of the file that holds its bytes.
      version: changes when the file changes: `size:mtime_ns` of a local one, the generation of one in a bucket;
        empty where the file is missing.
      size: bytes; -1 where unknown.
      offset: where its bytes start in `file`; None: it is the whole file.
      content: what is known of its content without reading it: `sha256:<hex>`, `md5:<hex>`, or nothing.
      metadata: JSON object of what else the corpus says about it; it travels with the record to the device.
      reject: why it cannot be read at all, where listing it showed that; else empty.
      detail: what was found, for the person who reads the rejects.
      text: of an item of a text corpus; None for images.
    """

    id: str
    uri: str
    file: str
    version: str = ""
    size: int = -1
    offset: int | None = None
    content: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    reject: str = ""
    detail: str = ""
    text: str | None = None

    @property
    def byte_range(self) -> str:
        """The bytes of an archive member, formatted as in `EmbeddingRecord.byte_range`; "" for a whole file."""
        return "" if self.offset is None else f"{self.offset}+{self.size}@{self.file}"
