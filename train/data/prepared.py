"""A whole data set as tokens: made once, checked before training starts, kept on disk.

Here: the pass over all rows, what happens to rows that are too long, and the cache. It is keyed by a
fingerprint of the files' contents, the tokenizer and all settings, and appears by renaming, so that a
killed run leaves none that is half done. Not here: what a row is (rows.py), batches (pipeline.py).
"""

import array
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_jax.errors import UserError
from train.data.jsonl import JsonlSource, find_files
from train.data.sequences import Sequence

# A row of a data set -> the sequences it stands for: one (SFT), or chosen and rejected (DPO).
Encode = Callable[[dict[str, Any]], list[Sequence]]

# Raise it whenever the encoding of rows or the layout of the cache changes.
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Token sequences of a data set, memory mapped.

    tokens: int32 [sum of n]; loss_mask: bool [sum of n]; offsets: int64 [sequences + 1] into both.
    fingerprint: of contents, tokenizer and settings. summary: one line for people.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray
    fingerprint: str
    summary: str

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int64 [sequences]."""
        return np.diff(self.offsets)

    def sequence(self, index: int) -> Sequence:
        """Tokens and loss mask of one sequence."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Sequence(self.tokens[part], self.loss_mask[part])


def prepare(
    path: str | Path,
    encode: Encode,
    *,
    max_length: int,
    overlong: str,
    cache_dir: str | Path,
    settings: Mapping[str, object],
) -> Prepared:
    """Tokenise every row of `path` with `encode`, or take the result of an earlier pass.

    max_length, overlong: limit in tokens of a sequence, and "error", "drop" or "truncate".
    settings: whatever else the encoding depends on (task, tokenizer, chat family); JSON values.
    Raises UserError with file and line for a bad row, and for rows over the limit where
    `overlong` is "error". A row that has nothing left to learn within the limit is dropped.
    """
    files = find_files(path)
    fingerprint = _fingerprint(
        files, {**settings, "max_length": max_length, "overlong": overlong, "format": _FORMAT}
    )
    folder = Path(cache_dir) / fingerprint
    if not folder.is_dir():
        _build(files, encode, max_length, overlong, folder)
    return Prepared(
        tokens=_map(folder / "tokens.bin", np.int32),
        loss_mask=_map(folder / "loss_mask.bin", np.bool_),
        offsets=np.load(folder / "offsets.npy"),
        fingerprint=fingerprint,
        summary=json.loads((folder / "meta.json").read_text())["summary"],
    )


def _build(files: list[Path], encode: Encode, max_length: int, overlong: str, folder: Path) -> None:
    """Write the cache folder; all of it or nothing."""
    source = JsonlSource(files)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        with (
            open(temporary / "tokens.bin", "wb") as tokens,
            open(temporary / "loss_mask.bin", "wb") as loss_mask,
        ):
            offsets, counts = array.array("q", [0]), _Counts()
            for index in range(len(source)):
                sequences = _encode_row(source, index, encode)
                kept = counts.limit(sequences, max_length, overlong, source.where(index))
                for sequence in kept:
                    sequence.tokens.tofile(tokens)
                    sequence.loss_mask.tofile(loss_mask)
                    offsets.append(offsets[-1] + len(sequence.tokens))
        counts.finish(max_length, overlong)
        np.save(temporary / "offsets.npy", np.asarray(offsets, np.int64))
        meta = {"summary": counts.summary(max_length)}
        (temporary / "meta.json").write_text(json.dumps(meta))
        # Another process may have been as quick with the same data: then its folder is as good.
        if not folder.is_dir():
            temporary.rename(folder)
    except OSError as error:
        raise UserError(
            f"cannot write tokenised rows to {folder.parent}: {error.strerror}; "
            "set data.cache_dir to a folder with space"
        ) from None
    finally:
        source.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _encode_row(source: JsonlSource, index: int, encode: Encode) -> list[Sequence]:
    row = source[index]
    try:
        sequences = encode(row)
    except UserError as error:
        raise UserError(f"{source.where(index)}: {error}") from None
    for sequence in sequences:
        if not sequence.loss_mask[1:].any():
            raise UserError(f"{source.where(index)}: no token to learn from in this row")
    return sequences


@dataclass
class _Counts:
    """What happened to the rows so far."""

    rows: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    over: int = 0
    first_over: str = ""
    dropped: int = 0

    def limit(
        self, sequences: list[Sequence], max_length: int, overlong: str, where: str
    ) -> list[Sequence]:
        """The sequences of a row as they are kept: unchanged, cut, or none of them."""
        longest = max(len(s.tokens) for s in sequences)
        self.longest = max(self.longest, longest)
        if longest > max_length:
            self.over += 1
            self.first_over = self.first_over or where
            sequences = [
                Sequence(s.tokens[:max_length], s.loss_mask[:max_length]) for s in sequences
            ]
            if overlong != "truncate" or not all(s.loss_mask[1:].any() for s in sequences):
                self.dropped += 1
                return []
        self.rows += 1
        self.tokens += sum(len(s.tokens) for s in sequences)
        self.targets += sum(int(s.loss_mask[1:].sum()) for s in sequences)
        return sequences

    def finish(self, max_length: int, overlong: str) -> None:
        """Complain where the whole data set cannot be used."""
        total = self.rows + self.dropped
        if self.over and overlong == "error":
            raise UserError(
                f"{self.over} of {total} rows are longer than data.max_length = {max_length} tokens "
                f"(longest {self.longest}, first at {self.first_over}); raise data.max_length, or set "
                "data.overlong to drop or truncate"
            )
        if not self.rows:
            raise UserError(
                f"all {total} rows are longer than data.max_length = {max_length} tokens "
                f"(longest {self.longest}) and nothing is left; raise data.max_length"
            )

    def summary(self, max_length: int) -> str:
        """One line for people."""
        text = (
            f"{self.rows} rows, {self.tokens} tokens, {self.targets} of them trained on, "
            f"longest row {self.longest}"
        )
        if self.over:
            text += (
                f"; {self.over} longer than {max_length}: {self.dropped} dropped, "
                f"{self.over - self.dropped} cut"
            )
        return text


def _fingerprint(files: list[Path], settings: Mapping[str, object]) -> str:
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=12)
    for file in files:
        try:
            with open(file, "rb") as stream:
                content = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=32))
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
        digest.update(content.digest())
    return digest.hexdigest()


def _map(file: Path, dtype: type) -> np.ndarray:
    return np.memmap(file, dtype, mode="r")
