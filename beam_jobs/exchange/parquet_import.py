"""Reads embeddings from Parquet files, in batches of rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.exchange.batches import ROWS, Batch, at
from beam_jobs.exchange.columns import EMBEDDING, FINGERPRINT, ID
from searchforge.errors import UsageError

_BUFFER_BYTES = 2**20
_PANDAS_INDEX = re.compile(r"__index_level_\d+__")


class ParquetEmbeddings:
    """A Parquet file with the columns `id` and `embedding`; see EmbeddingFile.

    Raises:
      UsageError: The file is not Parquet, or a column is missing or has a type that cannot be imported.
    """

    def __init__(self, path: Path, dim: int) -> None:
        self.name, self._path, self._dim = str(path), path, dim
        try:
            with pq.ParquetFile(path) as file:
                self.rows, schema = file.metadata.num_rows, file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{path} cannot be read as Parquet: {error}") from None
        for column in (ID, EMBEDDING):
            if schema.names.count(column) != 1:
                raise UsageError(
                    f"{path} has {schema.names.count(column)} columns {column!r}, among {', '.join(schema.names)}; "
                    "expected one: rename the columns with the id and the embedding"
                )
        self._require_types(schema)
        self.fingerprint = (schema.metadata or {}).get(FINGERPRINT, b"").decode()
        self._columns = [name for name in schema.names if not _PANDAS_INDEX.fullmatch(name)]

    def _require_types(self, schema: pa.Schema) -> None:
        id, embedding = schema.field(ID).type, schema.field(EMBEDDING).type
        values = id.value_type if pa.types.is_dictionary(id) else id
        if not (pa.types.is_integer(values) or pa.types.is_string(values) or pa.types.is_large_string(values)):
            raise UsageError(f"{self.name}: column {ID!r} is {id}; expected texts or integers")
        fixed = pa.types.is_fixed_size_list(embedding)
        variable = pa.types.is_list(embedding) or pa.types.is_large_list(embedding)
        if not (fixed or variable) or not pa.types.is_floating(embedding.value_type):
            raise UsageError(f"{self.name}: column {EMBEDDING!r} is {embedding}; expected lists of floats")
        if fixed and embedding.list_size != self._dim:
            raise UsageError(
                f"{self.name}: embeddings have {embedding.list_size} dimensions; expected {self._dim}, those of the "
                "encoder"
            )
        for field in schema:
            if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
                raise UsageError(
                    f"{self.name}: column {field.name!r} is {field.type}, which metadata cannot hold; drop it"
                )

    def batches(self) -> Iterator[Batch]:
        first = 0
        try:
            with pq.ParquetFile(self._path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
                for rows in file.iter_batches(ROWS, columns=self._columns):
                    vectors = self._vectors(rows.column(rows.schema.get_field_index(EMBEDDING)), first)
                    others = [name for name in self._columns if name != EMBEDDING]
                    yield Batch(vectors, rows.select(others).to_pylist())
                    first += len(rows)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{self.name} cannot be read after row {first}: {error}; copy or create the file again"
            ) from None

    def _vectors(self, column: pa.Array, first: int) -> npt.NDArray[Any]:
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
            raise UsageError(f"{at(self.name, first + row)}: the embedding is null; expected {self._dim} numbers")
        numbers = column.flatten()
        if not pa.types.is_fixed_size_list(column.type):
            lengths = column.value_lengths().to_numpy()
            if (lengths != self._dim).any():
                row = int(np.flatnonzero(lengths != self._dim)[0])
                raise UsageError(
                    f"{at(self.name, first + row)}: the embedding has {lengths[row]} dimensions; expected {self._dim}, "
                    "those of the encoder"
                )
        if numbers.null_count:
            position = int(np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))[0])
            row, position = divmod(position, self._dim)
            raise UsageError(f"{at(self.name, first + row)}: number {position} of the embedding is null")
        return numbers.to_numpy(zero_copy_only=False).reshape(-1, self._dim)
