"""A person's benchmark file, or folder of files, as rows that know where they stand.

    for row in read_rows(path, ("problem", "answer")):
        row.text("problem"), row.integer("answer")        # UserErrors say file:line and column

Here: JSONL, JSON, CSV (each also as .gz) and parquet; the columns a benchmark needs; checksums. Rows are read
one after the other, so that a large file is never in memory as a whole (a .json document is). Not here: what a
row means (eval/tasks), training data (gemma4_jax/data).
"""

import csv
import gzip
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.task import Item
from gemma4_jax.data.jsonl import decode_row
from gemma4_jax.data.parquet import ParquetFile
from gemma4_jax.errors import UserError

KINDS = ".jsonl, .json, .csv, each also as .gz; .parquet"
# Beside the data, as `sha256sum *` writes it: what it names must be as it says.
SUMS = "SHA256SUMS"

_KIND = re.compile(r"\.(jsonl|ndjson|json|csv)(?:\.gz)?$|\.(parquet)$", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """where: "file:line" (of parquet and JSON documents: the row's number), for messages."""

    where: str
    data: Mapping[str, Any]

    @property
    def file(self) -> Path:
        """The file it stands in."""
        return Path(self.where.rpartition(":")[0])

    def text(self, column: str) -> str:
        """A string; UserError if it is none."""
        value = self.data[column]
        if not isinstance(value, str):
            raise self.error(f"{column!r} must be a string, got {value!r:.60}")
        return value

    def integer(self, column: str) -> int:
        """A whole number, also where a file spells it as text ("070") or as a float (70.0)."""
        value = self.data[column]
        if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+\s*", value):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.error(f"{column!r} must be a whole number, got {value!r:.60}")
        return value

    def one_of(self, column: str, allowed: Sequence[str]) -> str:
        """A string that is one of `allowed`."""
        value = self.text(column).strip()
        if value not in allowed:
            raise self.error(f"{column!r} must be one of {', '.join(allowed)}, got {value!r:.60}")
        return value

    def texts(self, column: str) -> list[str]:
        """A list of strings."""
        value = self.data[column]
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise self.error(f"{column!r} must be a list of strings, got {value!r:.60}")
        return value

    def error(self, message: str) -> UserError:
        """An error of this row."""
        return UserError(f"{self.where}: {message}")


def read_rows(
    path: str | Path,
    required: Sequence[str],
    *,
    named: str = "",
    sha256: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """The rows of a file, or of a folder's files in the order of their names.

    required: columns that no row may lack (null counts as lacking). named, sha256: as in `find_files`.
    """
    empty = True
    for file in find_files(path, named=named, sha256=sha256):
        for row in _read(file):
            missing = [column for column in required if row.data.get(column) is None]
            if missing:
                there = ", ".join(map(repr, (k for k, v in row.data.items() if v is not None)))
                raise row.error(
                    f"no {', '.join(map(repr, missing))} (columns here: {there or 'none'})"
                )
            empty = False
            yield row
    if empty:
        raise UserError(f"no rows in {path}")


def find_files(
    path: str | Path, *, named: str = "", sha256: Mapping[str, str] | None = None
) -> list[Path]:
    """The file itself; or the data files anywhere below a folder, by name, hidden ones left out.

    named: which of a folder's, a regular expression that their paths below it contain. sha256: file name -> the
    checksum it is known to have. Those are checked first, and those that a SHA256SUMS beside a file lists.
    """
    path = Path(path)
    if path.is_dir():
        below = _below(path)
        files = _named(below, path, named)
        if not files:
            there = f"; it has {', '.join(p.name for p in below[:8])}" if below else f" ({KINDS})"
            wanted = f" whose name contains {named!r}" if named else ""
            raise UserError(f"no data file{wanted} in folder {path}{there}")
    elif path.is_file():
        if not _KIND.search(path.name):
            raise UserError(f"{path}: no known kind of file (known: {KINDS})")
        files = [path]
    else:
        raise UserError(f"no such file or folder: {path}")
    for file in files:
        _check_sums(file, sha256 or {})
    return files


def has_files(path: str | Path, named: str) -> bool:
    """Whether `path` is a folder in which `find_files` would find some of that name."""
    path = Path(path)
    return path.is_dir() and bool(_named(_below(path), path, named))


def unique_items(items: Iterable[tuple[Row, Item]]) -> list[Item]:
    """The items, in order; UserError if two of them share an id."""
    first: dict[str, str] = {}
    kept = []
    for row, item in items:
        if item.id in first:
            raise row.error(
                f"id {item.id!r} is already that of {first[item.id]}; is a row or file there twice?"
            )
        first[item.id] = row.where
        kept.append(item)
    return kept


def _below(folder: Path) -> list[Path]:
    """Every data file below a folder, hidden ones left out."""
    files = (path for path in folder.rglob("*") if _KIND.search(path.name) and path.is_file())
    return sorted(
        file
        for file in files
        if not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)
    )


def _named(files: Iterable[Path], folder: Path, named: str) -> list[Path]:
    return [file for file in files if re.search(named, str(file.relative_to(folder)))]


def _check_sums(file: Path, known: Mapping[str, str]) -> None:
    expected = {}
    if file.name in known:
        expected["the published file's"] = known[file.name]
    if (sums := file.parent / SUMS).is_file():
        for line in sums.read_text("utf-8").splitlines():
            # "<sum>  name", or "<sum> *name" where sha256sum read it as binary.
            digest, _, name = line.partition(" ")
            if name[1:] == file.name:
                expected[f"{SUMS} says"] = digest
    if not expected:
        return
    with open(file, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    for who, digest in expected.items():
        if digest.lower() != found:
            raise UserError(
                f"{file}: its sha256 is {found}, {who} {digest}; fetch it again, or rename it if it is meant "
                "to differ"
            )


def _read(file: Path) -> Iterator[Row]:
    kind = _KIND.search(file.name)
    assert kind is not None, file
    ending = (kind[1] or kind[2]).lower()
    try:
        if ending == "parquet":
            yield from _read_parquet(file)
            return
        packed = file.name.lower().endswith(".gz")
        with gzip.open(file, "rb") if packed else open(file, "rb") as handle:
            if ending == "csv":
                yield from _read_csv(file, handle)
            elif ending == "json":
                yield from _read_json(file, handle.read())
            else:
                yield from _read_lines(file, handle)
    except (OSError, EOFError) as error:
        raise UserError(
            f"cannot read {file}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _read_parquet(file: Path) -> Iterator[Row]:
    table = ParquetFile(file)
    try:
        for i in range(len(table)):
            where = f"{file}:{table.number(i)}"
            try:
                yield Row(where, table[i])
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
    finally:
        table.close()


def _read_lines(file: Path, lines: Iterable[bytes]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{file}:{number}"
            try:
                data = decode_row(line)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            yield Row(where, data)


def _read_json(file: Path, text: bytes) -> Iterator[Row]:
    """One array of objects, or an object that holds one such array; else lines, whatever the name says."""
    try:
        document = json.loads(text)
    except ValueError:
        yield from _read_lines(file, text.splitlines())
        return
    rows = document
    if isinstance(document, dict):
        arrays = [value for value in document.values() if _objects(value)]
        rows = arrays[0] if len(arrays) == 1 else [document]
    if not isinstance(rows, list):
        raise UserError(f"{file}: must be an array of objects, got {type(document).__name__}")
    for i, data in enumerate(rows, 1):
        if not isinstance(data, dict):
            raise UserError(f"{file}:{i}: a row must be a JSON object, got {type(data).__name__}")
        yield Row(f"{file}:{i}", data)


def _objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _read_csv(file: Path, handle: Any) -> Iterator[Row]:
    reader = csv.DictReader(
        io.TextIOWrapper(handle, encoding="utf-8-sig", newline=""), restkey="\0", strict=True
    )
    where = f"{file}:1"
    try:
        columns = reader.fieldnames or []
        while True:
            # A quoted field may hold line breaks: a row's line is the first of its lines.
            where = f"{file}:{reader.line_num + 1}"
            data = next(reader, None)
            if data is None:
                return
            if "\0" in data:
                raise UserError(
                    f"{where}: more fields than the header has columns ({len(columns)})"
                )
            yield Row(where, data)
    except csv.Error as error:
        raise UserError(f"{where}: not CSV: {error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8: {error.reason}") from None
