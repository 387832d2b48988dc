"""Which files a path means, and their rows by number, whatever kind of file they stand in.

Here: files, folders and globs, and `Rows`, one run of numbers over many files. Not here: what a row must
contain (formats.py).
"""

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_jax.data.array_record import ArrayRecordFile
from gemma4_jax.data.jsonl import JsonlFile
from gemma4_jax.data.parquet import ParquetFile
from gemma4_jax.errors import UserError

KINDS = ".jsonl, .parquet, .array_record"


# One file: rows by number, each row's number as people count, and `close`. Reading a row raises UserError
# with what is wrong in it; `Rows` adds where.
RowFile = JsonlFile | ParquetFile | ArrayRecordFile


def find_files(path: str | Path) -> list[Path]:
    """The file itself; the files of a folder, by name; or what a glob matches (`**` crosses folders).

    UserError if there is none, or one is of no known kind.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file() and _in_folder(file))
        if not files:
            raise UserError(f"no data file in folder {path} (known kinds: {KINDS})")
        return files
    if path.exists():
        files = [path]
    elif glob.has_magic(str(path)):
        matches = map(Path, glob.glob(str(path), recursive=True))
        files = sorted(file for file in matches if file.is_file())
        if not files:
            raise UserError(f"no file matches {path}")
    else:
        raise UserError(
            f"no such file or folder: {path} (give a file, a folder of files, or a quoted glob)"
        )
    for file in files:
        if _kind(file) is None:
            raise UserError(f"{file}: no known kind of data file (known: {KINDS})")
    return files


class Rows:
    """`rows[i]` is the i-th row, a dict, of files taken one after the other."""

    def __init__(self, files: Sequence[Path]):
        """Open `files`; UserError if one cannot be read or none of them has a row."""
        self._paths = list(files)
        self._files: list[RowFile] = []
        try:
            for file in self._paths:
                self._files.append(_open(file))
        except BaseException:
            self.close()
            raise
        self._ends = np.cumsum([len(file) for file in self._files])
        if not len(self):
            self.close()
            names = ", ".join(map(str, self._paths))
            empty = "the file is empty" if len(self._paths) == 1 else "the files are empty"
            raise UserError(f"no rows in {names}: {empty}")

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        file, within = self._find(index)
        try:
            return self._files[file][within]
        except UserError as error:
            raise UserError(f"{self.where(index)}: {error}") from None

    def where(self, index: int) -> str:
        """`file:number` of a row, for messages."""
        file, within = self._find(index)
        return f"{self._paths[file]}:{self._files[file].number(within)}"

    def close(self) -> None:
        """Close the files; the rows are of no use afterwards."""
        while self._files:
            self._files.pop().close()

    def _find(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._ends, index, side="right"))
        return file, index - (int(self._ends[file - 1]) if file else 0)


def _kind(
    file: Path,
) -> type[JsonlFile] | type[ParquetFile] | type[ArrayRecordFile] | None:
    name = file.name.lower()
    # Shards carry their number behind the ending: train.array_record-00000-of-00128.
    if ".array_record" in name or ".arrayrecord" in name:
        return ArrayRecordFile
    if name.endswith((".jsonl", ".ndjson", ".json")):
        return JsonlFile
    return ParquetFile if name.endswith(".parquet") else None


def _in_folder(file: Path) -> bool:
    """Whether a file is data where nobody named it: a .json beside data describes them."""
    hidden = file.name.startswith((".", "_"))
    return not hidden and file.suffix.lower() != ".json" and _kind(file) is not None


def _open(file: Path) -> RowFile:
    kind = _kind(file)
    assert kind is not None, file
    try:
        with open(file, "rb"):
            pass
        return kind(file)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
