"""The items of a corpus, as listed before their content is read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from searchforge.image_decoding import RejectedInput


@dataclass(frozen=True)
class Item:
    """One input of a corpus.

    Attributes:
      id: Unique id: the path relative to the folder or to the fixed part of the glob; for a list, its id column or else
        the path or URI as listed; for a member of an archive, `<archive's id>/<member>`.
      uri: Origin, for display and comparison: a path, a URI, `archive.tar!member` or `texts.csv:17`.
      file: Path or URI of the file that contains the item.
      version: Version of the file: `size:mtime_ns` if local, the generation if in a bucket; empty if it is missing.
      size: Size in bytes; -1 if unknown.
      offset: Offset of the item in `file`, in bytes; None if it is the whole file.
      content: Hash of the content, if known from listing: `sha256:<hex>` or `md5:<hex>`; else empty.
      metadata: JSON object with the item's other attributes, which travels with its record to the device.
      reject: Reason why the item cannot be used, if known from listing; else empty.
      detail: Human-readable details of the reject.
      may_pass: Whether the cause of the reject may pass; see `RejectedInput`.
      text: The text, in a text corpus; None for images.
      metadata_error: Why `metadata` lacks a part that could not be read; else empty.
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
    may_pass: bool = False
    text: str | None = None
    metadata_error: str = ""

    def rejected(self, error: RejectedInput) -> Item:
        """Returns the item with the reject that reading it raised."""
        return replace(self, reject=error.reason, detail=error.detail, may_pass=error.may_pass)

    @property
    def byte_range(self) -> str:
        """Byte range of an archive member, formatted as in `EmbeddingRecord`; empty for a whole file."""
        return "" if self.offset is None else f"{self.offset}+{self.size}@{self.file}"
