"""A whole data set as tokens: made once, checked before training starts, kept on disk.

Here: the pass over all rows, what happens to rows that are wrong or too long, and the cache. It is keyed by a
fingerprint of the files' contents, the tokenizer and all settings, and appears by renaming, so that a
killed run leaves none that is half done. Not here: what a row is (gemma4_jax/data), batches (pipeline.py).
"""

import array
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_jax.data.encode import Encode, Encoded, Sequence
from gemma4_jax.data.files import Rows, find_files
from gemma4_jax.errors import UserError
from train.data.order import Part

# Raise it whenever the encoding of rows or the layout of the cache changes.
_FORMAT = 2

REJECTED = "rejected.jsonl"
_ARRAYS = ("tokens", "loss_mask", "offsets")


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Token sequences of a data set, memory mapped.

    tokens: int32 [sum of n]; loss_mask: bool [sum of n]; offsets: int64 [sequences + 1] into both.
    fingerprint: of contents, tokenizer and settings. summary: one line for people. folder: where all this
    is kept, and `rejected.jsonl`, the rows that were skipped.
    """

    tokens: np.ndarray
    loss_mask: np.ndarray
    offsets: np.ndarray
    fingerprint: str
    summary: str
    folder: Path | None = None

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence, int64 [sequences]."""
        return np.diff(self.offsets)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The one part that a data set is of itself."""
        return (Part(0, len(self.offsets) - 1, Fraction(1)),)

    def sequence(self, index: int) -> Sequence:
        """Tokens and loss mask of one sequence."""
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return Sequence(self.tokens[part], self.loss_mask[part])

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: they map the files themselves."""
        state = dict(self.__dict__)
        return state if self.folder is None else {**state, **dict.fromkeys(_ARRAYS)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        folder = state["folder"]
        self.__dict__.update(state if folder is None else {**state, **_open_arrays(folder)})


def prepare(
    path: str | Path,
    encode: Encode,
    *,
    max_length: int,
    overlong: str,
    cache_dir: str | Path,
    settings: Mapping[str, object],
    on_error: str = "stop",
) -> Prepared:
    """Tokenise every row of `path` with `encode`, or take the result of an earlier pass.

    max_length, overlong: limit in tokens of a sequence, and "error", "drop" or "truncate".
    settings: whatever else the encoding depends on (task, tokenizer, chat family); JSON values.
    on_error: "stop" raises UserError with file and line for the first bad row, "skip" leaves bad rows out and
    lists them in `rejected.jsonl`. Raises UserError for rows over the limit where `overlong` is "error".
    An example that has nothing left to learn within the limit is dropped.
    """
    files = find_files(path)
    keyed = {**settings, "max_length": max_length, "overlong": overlong, "format": _FORMAT}
    if on_error != "stop":
        keyed["on_error"] = on_error
    fingerprint = _fingerprint(files, keyed)
    folder = Path(cache_dir) / fingerprint
    if not folder.is_dir():
        _build(files, encode, max_length, overlong, on_error, folder)
    return Prepared(
        **_open_arrays(folder),
        fingerprint=fingerprint,
        summary=json.loads((folder / "meta.json").read_text())["summary"],
        folder=folder,
    )


def rejected_rows(prepared: Prepared) -> list[dict[str, str]]:
    """The rows that were skipped, {"where": file and number, "reason": ...} each."""
    if prepared.folder is None:
        return []
    return [json.loads(line) for line in (prepared.folder / REJECTED).read_text().splitlines()]


def _build(
    files: list[Path], encode: Encode, max_length: int, overlong: str, on_error: str, folder: Path
) -> None:
    """Write the cache folder; all of it or nothing."""
    rows = Rows(files)
    temporary = folder.with_name(f"{folder.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        with (
            open(temporary / "tokens.bin", "wb") as tokens,
            open(temporary / "loss_mask.bin", "wb") as loss_mask,
            open(temporary / REJECTED, "w") as rejected,
        ):
            offsets, counts = array.array("q", [0]), _Counts()
            for index in range(len(rows)):
                try:
                    encoded = _encode_row(rows, index, encode)
                except UserError as error:
                    if on_error == "stop":
                        raise
                    where = rows.where(index)
                    reason = str(error).removeprefix(f"{where}: ")
                    counts.reject(f"{where}: {reason}")
                    row = {"where": where, "reason": reason}
                    rejected.write(json.dumps(row, ensure_ascii=False) + "\n")
                    continue
                for sequence in counts.limit(encoded, max_length, overlong, rows.where(index)):
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
        rows.close()
        shutil.rmtree(temporary, ignore_errors=True)


def _encode_row(rows: Rows, index: int, encode: Encode) -> Encoded:
    row = rows[index]
    try:
        encoded = encode(row)
    except UserError as error:
        raise UserError(f"{rows.where(index)}: {error}") from None
    for example in encoded.examples:
        if not all(sequence.loss_mask[1:].any() for sequence in example):
            raise UserError(f"{rows.where(index)}: no token to learn from in this row")
    return encoded


@dataclass
class _Counts:
    """What happened to the rows and their examples so far."""

    rows: int = 0
    examples: int = 0
    tokens: int = 0
    targets: int = 0
    longest: int = 0
    over: int = 0
    first_over: str = ""
    dropped: int = 0
    rejected: int = 0
    first_rejected: str = ""
    formats: Counter[str] = field(default_factory=Counter)

    def reject(self, complaint: str) -> None:
        """Count a row that could not be encoded."""
        self.rejected += 1
        self.first_rejected = self.first_rejected or complaint

    def limit(self, encoded: Encoded, max_length: int, overlong: str, where: str) -> list[Sequence]:
        """The sequences of a row that are kept, unchanged or cut."""
        self.rows += 1
        self.formats[encoded.format] += 1
        kept: list[Sequence] = []
        for example in encoded.examples:
            kept += self._limit_example(example, max_length, overlong, where)
        return kept

    def _limit_example(
        self, example: tuple[Sequence, ...], max_length: int, overlong: str, where: str
    ) -> tuple[Sequence, ...]:
        longest = max(len(s.tokens) for s in example)
        self.longest = max(self.longest, longest)
        if longest > max_length:
            self.over += 1
            self.first_over = self.first_over or where
            example = tuple(
                Sequence(s.tokens[:max_length], s.loss_mask[:max_length]) for s in example
            )
            if overlong != "truncate" or not all(s.loss_mask[1:].any() for s in example):
                self.dropped += 1
                return ()
        self.examples += 1
        self.tokens += sum(len(s.tokens) for s in example)
        self.targets += sum(int(s.loss_mask[1:].sum()) for s in example)
        return example

    def finish(self, max_length: int, overlong: str) -> None:
        """Complain where the whole data set cannot be used."""
        if not self.rows:
            raise UserError(
                f"all {self.rejected} rows were rejected, the first at {self.first_rejected}"
            )
        total = self.examples + self.dropped
        # Rows and examples differ only where a row gives several.
        unit = "rows" if total == self.rows else "examples"
        if self.over and overlong == "error":
            raise UserError(
                f"{self.over} of {total} {unit} are longer than data.max_length = {max_length} tokens "
                f"(longest {self.longest}, first at {self.first_over}); raise data.max_length, or set "
                "data.overlong to drop or truncate"
            )
        if not self.examples:
            raise UserError(
                f"all {total} {unit} are longer than data.max_length = {max_length} tokens "
                f"(longest {self.longest}) and nothing is left; raise data.max_length"
            )

    def summary(self, max_length: int) -> str:
        """One line for people."""
        formats = ", ".join(
            name if len(self.formats) == 1 else f"{name} {count}"
            for name, count in self.formats.most_common()
        )
        total = self.examples + self.dropped
        text = f"{self.rows} rows ({formats}), "
        if total != self.rows:
            text += f"{self.examples} examples, "
        text += f"{self.tokens} tokens, {self.targets} of them trained on, longest {self.longest}"
        if self.over:
            text += (
                f"; {self.over} longer than {max_length}: {self.dropped} dropped, "
                f"{self.over - self.dropped} cut"
            )
        if self.rejected:
            text += f"; {self.rejected} rows rejected, the first at {self.first_rejected}"
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


def _open_arrays(folder: Path) -> dict[str, np.ndarray]:
    return {
        "tokens": np.memmap(folder / "tokens.bin", np.int32, mode="r"),
        "loss_mask": np.memmap(folder / "loss_mask.bin", np.bool_, mode="r"),
        "offsets": np.load(folder / "offsets.npy"),
    }
