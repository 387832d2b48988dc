"""Rows of an ArrayRecord file by number: every record is one JSON object in UTF-8.

The container is grain's own, made for reading at random; what its records hold is up to who wrote them.
"""

from pathlib import Path
from typing import Any

from gemma4_jax.data.jsonl import decode_row
from gemma4_jax.errors import UserError


class ArrayRecordFile:
    """`file[i]` is the object in the i-th record."""

    def __init__(self, path: Path):
        """Read the index of `path`; UserError if it has none."""
        from array_record.python.array_record_module import ArrayRecordReader

        self._reader = ArrayRecordReader(str(path))
        if not self._reader.ok():
            raise UserError(f"{path}: not an ArrayRecord file, or cut short")

    def __len__(self) -> int:
        return int(self._reader.num_records())

    def __getitem__(self, index: int) -> dict[str, Any]:
        (record,) = self._reader.read([index])
        return decode_row(record)

    def number(self, index: int) -> int:
        """The record's number, from 1."""
        return index + 1

    def close(self) -> None:
        """Close the file."""
        self._reader.close()
