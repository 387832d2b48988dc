"""Every generation, one JSON line each, kept for good: what a killed run resumes from and scoring reads.

A line is written with one call, so that a kill leaves it whole, or torn at the end of the file, where the
next run cuts it off. One run writes at a time: the file is locked, and the system gives the lock back however
the run ends. Not here: what is generated (`asks.py`), what scores say (`verdicts.py`).
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma4_jax.errors import UserError

# Seconds of answers that a power cut may cost. (A killed process costs none: the system has its lines.)
_SYNC_EVERY = 5.0


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One sample of one item, as it was generated.

    key: digest of (task, item, sample, protocol, messages, settings, model fingerprint). text: everything the
    model wrote after the prompt, control tokens spelt out. thought, answer: its parts; thought is None if it
    has none. truncated: it ended for lack of tokens. unfinished_thought: it ended inside its thought, so it
    has no answer. prompt_tokens, thought_tokens, answer_tokens: lengths. seconds: from its submission to its
    last token.
    """

    key: str
    task: str
    item: str
    sample: int
    seed: int
    model: str  # fingerprint
    protocol: str
    messages: list[Mapping[str, Any]]
    settings: Mapping[str, Any]
    text: str
    thought: str | None
    answer: str
    finish_reason: str
    truncated: bool
    unfinished_thought: bool
    prompt_tokens: int
    thought_tokens: int
    answer_tokens: int
    seconds: float


class Store:
    """The file, open to be added to. `keys`: of all generations in it."""

    def __init__(self, path: Path):
        """Open or create `path`. UserError if another run writes to it, it cannot be used or is damaged.

        `torn`: bytes of a last line that a kill had left unfinished; they are gone from the file.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UserError(f"cannot use {path}: {error.strerror}") from None
        try:
            self._lock()
            whole = _whole(path)
            self.keys = {generation.key for generation in read(path)}
            self.torn = os.fstat(self._file).st_size - whole
            if self.torn:
                os.truncate(self._file, whole)
        except BaseException:
            os.close(self._file)
            raise
        self._synced = time.monotonic()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another run is writing to {self.path}; wait for its end, or give another --workdir"
            ) from None

    def append(self, generation: Generation) -> None:
        """Add one line. ValueError for a key that is there already; UserError if the disk takes no more."""
        if generation.key in self.keys:
            raise ValueError(
                f"{generation.task} {generation.item} sample {generation.sample} is there"
            )
        row = {f.name: getattr(generation, f.name) for f in dataclasses.fields(generation)}
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
        before = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(28, "no room for the line")
        except OSError as error:
            os.truncate(self._file, before)
            raise UserError(
                f"cannot write to {self.path}: {error.strerror}; make room, and the same command goes on"
            ) from None
        self.keys.add(generation.key)
        if time.monotonic() - self._synced > _SYNC_EVERY:
            self.sync()

    def sync(self) -> None:
        """Wait until everything is on disk."""
        os.fsync(self._file)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Everything to disk, and the lock given back."""
        self.sync()
        os.close(self._file)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> Iterator[Generation]:
    """The generations of a file, which a run may be adding to; a torn last line is left out.

    Raises UserError for a damaged line, and for a key that is there twice.
    """
    names = {field.name for field in dataclasses.fields(Generation)}
    seen: dict[str, int] = {}
    for number, row in _rows(path):
        if missing := sorted(names - row.keys()):
            raise UserError(f"{path}:{number}: no {missing[0]!r}, so this is no generation")
        generation = Generation(**{name: row[name] for name in names})
        if generation.key in seen:
            raise UserError(
                f"{path}:{number} has the key of line {seen[generation.key]}; delete one of them"
            )
        seen[generation.key] = number
        yield generation


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole lines with their numbers."""
    try:
        lines = path.open("rb")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    whole = _whole(path)
    with lines:
        for number, line in enumerate(lines, 1):
            if lines.tell() > whole:
                return
            row = _parsed(line)
            if row is None:
                raise UserError(
                    f"{path}:{number} is no JSON object; delete that line, and it is generated again"
                )
            yield number, row


def _whole(path: Path) -> int:
    """Bytes up to the end of the last line that is whole. What a kill tore has no end, or (after a power cut)
    no sense."""
    size, block = path.stat().st_size, b""
    with path.open("rb") as file:
        at = size
        while at and block.count(b"\n") < 2:
            at = max(0, at - (1 << 20))
            file.seek(at)
            block = file.read(size - at)
    end = block.rfind(b"\n") + 1
    if end == 0:
        return 0
    begin = block.rfind(b"\n", 0, end - 1) + 1
    return at + (end if _parsed(block[begin:end]) is not None else begin)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
