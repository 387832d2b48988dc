"""Rows of JSONL files by number, without holding them in memory.

Here: a source with an index of line offsets, read with `os.pread` (a shared seek position would race
between reading threads). Not here: what a row must contain (rows.py).
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_jax.errors import UserError

_CHUNK = 1 << 24


def find_files(path: str | Path) -> list[Path]:
    """The file itself, or the `*.jsonl` files of a folder by name; UserError if there are none."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(
            f"no such file or folder: {path} (data.path takes a .jsonl file or a folder)"
        )
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise UserError(f"no *.jsonl file in folder {path}")
    return files


class JsonlSource:
    """`source[i]` is the i-th row, a dict, of files taken one after the other without blank lines."""

    def __init__(self, files: Sequence[Path]):
        """Index `files`; UserError if one cannot be read or none of them has a row."""
        self.files = list(files)
        self._handles: list[int] = []
        starts, ends, lines, owners = [], [], [], []
        for number, file in enumerate(self.files):
            try:
                handle = os.open(file, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"cannot read {file}: {error.strerror}") from None
            self._handles.append(handle)
            start, end, line = _index_lines(handle)
            starts.append(start)
            ends.append(end)
            lines.append(line)
            owners.append(np.full(len(start), number))
        self._start = np.concatenate(starts)
        self._end = np.concatenate(ends)
        self._line = np.concatenate(lines)
        self._file = np.concatenate(owners)
        if not len(self._start):
            raise UserError(f"no rows in {', '.join(map(str, self.files))}: the file is empty")

    def __len__(self) -> int:
        return len(self._start)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start, end = int(self._start[index]), int(self._end[index])
        text = os.pread(self._handles[self._file[index]], end - start, start)
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{self.where(index)}: not JSON: {error.msg} at column {error.colno}"
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(f"{self.where(index)}: not UTF-8: {error.reason}") from None
        if not isinstance(row, dict):
            raise UserError(
                f"{self.where(index)}: a row must be a JSON object, got {type(row).__name__}"
            )
        return row

    def where(self, index: int) -> str:
        """`file:line` of a row, for messages."""
        return f"{self.files[self._file[index]]}:{self._line[index]}"

    def close(self) -> None:
        """Close the files; the source is of no use afterwards."""
        while self._handles:
            os.close(self._handles.pop())


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
