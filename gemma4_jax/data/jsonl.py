"""Rows of a JSONL file by number, without holding them in memory.

An index of line offsets, read with `os.pread`: a shared seek position would race between reading threads.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_jax.errors import UserError

_CHUNK = 1 << 24


class JsonlFile:
    """`file[i]` is the object on the i-th line that is not blank."""

    def __init__(self, path: Path):
        """Index `path`; OSError if it cannot be read."""
        self._handle = os.open(path, os.O_RDONLY)
        self._start, self._end, self._line = _index_lines(self._handle)

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = int(self._start[index]), int(self._end[index])
        return decode_row(os.pread(self._handle, end - start, start))

    def number(self, index: int) -> int:
        """The row's line, from 1."""
        return int(self._line[index])

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)


def decode_row(text: bytes) -> dict[str, Any]:
    """A row from one JSON object in UTF-8; UserError says what is wrong with it."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        array = text.lstrip()[:1] == b"["
        hint = "; if the whole file is one array, write one object a line" if array else ""
        raise UserError(f"not JSON: {error.msg} at column {error.colno}{hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error.reason}") from None
    if not isinstance(row, dict):
        raise UserError(f"a row must be a JSON object, got {type(row).__name__}")
    return row


def _index_lines(handle: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(start, end, 1-based line number) of every line that is not blank; int64 each."""
    size = os.fstat(handle).st_size
    newlines, offset = [], 0
    while offset < size:
        chunk = np.frombuffer(os.pread(handle, _CHUNK, offset), np.uint8)
        newlines.append(np.flatnonzero(chunk == ord("\n")) + offset)
        offset += len(chunk)
    breaks = np.concatenate([*newlines, np.asarray([size])]).astype(np.int64)
    start = np.concatenate([[0], breaks[:-1] + 1]).astype(np.int64)
    number = np.arange(1, len(breaks) + 1)
    # Only short lines can be blank: looking at them alone keeps indexing at the speed of the disk.
    keep = breaks > start
    for i in np.flatnonzero(keep & (breaks - start < 16)):
        keep[i] = bool(os.pread(handle, int(breaks[i] - start[i]), int(start[i])).strip())
    return start[keep], breaks[keep], number[keep]
