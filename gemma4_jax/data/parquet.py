"""Rows of a Parquet file by number, one row group in memory at a time.

Reading in order decodes every group once; jumping about decodes a group for every jump. One thread at a
time may read.
"""

from pathlib import Path
from typing import Any

import numpy as np

from gemma4_jax.errors import UserError


class ParquetFile:
    """`file[i]` is the i-th row as a dict of Python values, without the fields that are null.

    Arrow gives every struct of a column all the fields that any of them has: a null there nearly always
    means that the row had no such key, so a message gets no `tool_calls` because another one has some.
    """

    def __init__(self, path: Path):
        """Read the footer of `path`; UserError if it has none."""
        # A tenth of a second that data in other kinds of file do not pay for.
        import pyarrow
        from pyarrow import parquet

        try:
            self._file = parquet.ParquetFile(path)
        except pyarrow.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path}: not a Parquet file: {reason}") from None
        meta = self._file.metadata
        sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
        self._ends = np.cumsum([0, *sizes])[1:]
        self._group, self._table = -1, None

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        import pyarrow

        group = int(np.searchsorted(self._ends, index, side="right"))
        if group != self._group:
            try:
                self._table = self._file.read_row_group(group)
            except (pyarrow.ArrowInvalid, OSError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"row group {group} cannot be read: {reason}") from None
            self._group = group
        assert self._table is not None
        within = index - (int(self._ends[group - 1]) if group else 0)
        (row,) = self._table.slice(within, 1).to_pylist()
        return _without_nulls(row)

    def number(self, index: int) -> int:
        """The row's number, from 1."""
        return index + 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
