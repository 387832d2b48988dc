"""Prompts of a file to answers in a file, through an engine: resumable, and always at full batch.

Every answer is one line, written as soon as it is there, in the order in which answers end; `row` is the line
of its prompt. What is in the file is not asked again: a run that was killed goes on where it stopped. Beside
the answers lies a note of the prompts and settings they came from, and another run's are refused.

Not here: the model, flags and what a terminal shows (`commands/generate_file.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma4_jax.data.jsonl import JsonlFile
from gemma4_jax.errors import UserError
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.prompts import Prompt
from gemma4_jax.sample.row import Completion
from gemma4_jax.sample.stream import Stream
from gemma4_jax.text.parse import parse

# Requests in line for every row that decodes: enough that none waits, few enough to hold in memory.
_AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is: rows answered, refused and there are, and tokens written by this run."""

    answered: int
    refused: int
    rows: int
    tokens: int

    @property
    def left(self) -> int:
        """Rows still to come."""
        return self.rows - self.answered - self.refused


def answer_file(
    engine: Engine,
    prompts: Path,
    answers: Path,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
    told: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Answer every row of `prompts` that has no line in `answers` yet.

    A row is an object with `messages`, or with `prompt`, a raw text; row i draws from the seed and its number,
    whatever else runs. Rows that cannot be answered get a line with `error`. options: of `Engine.submit`.
    settings: what answers depend on, as JSON values; told: called after every step.

    Raises UserError for files that cannot be used, and for answers of other settings or prompts.
    """
    try:
        rows = JsonlFile(prompts)
    except OSError as error:
        raise UserError(f"cannot read {prompts}: {error.strerror}") from None
    if not len(rows):
        raise UserError(f"{prompts} has no rows")
    note = {"prompts": _digest(prompts), "settings": dict(settings)}
    done = _open(answers, json.loads(json.dumps(note)))
    answered = sum("error" not in line for line in done.values())
    refused, tokens = len(done) - answered, 0
    waiting = (i for i in range(len(rows)) if rows.number(i) not in done)
    running: dict[int, tuple[Stream, str]] = {}
    if engine.model.tokenizer is None:
        raise UserError("this model has no tokenizer: its answers have no text")
    decode = engine.model.tokenizer.decode
    with answers.open("a", encoding="utf-8") as out:

        def put(line: dict[str, Any]) -> None:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")
            out.flush()

        try:
            more = True
            while running or more:
                while more and len(running) < _AHEAD * engine.max_slots:
                    index = next(waiting, None)
                    more = index is not None
                    if index is None:
                        break
                    number = rows.number(index)
                    try:
                        prompt = _prompt(rows[index])
                        stream = engine.submit(prompt, row=index, **options)
                        running[number] = stream, decode(stream.prompt)
                    except UserError as error:
                        put({"row": number, "error": str(error)})
                        refused += 1
                engine.step()
                for number, (stream, text) in list(running.items()):
                    if not stream.ended:
                        continue
                    del running[number]
                    try:
                        completion = stream.result()
                    except UserError as error:
                        put({"row": number, "error": str(error)})
                        refused += 1
                        continue
                    put({"row": number, **_line(completion, text)})
                    answered, tokens = answered + 1, tokens + len(completion.tokens)
                told(Progress(answered=answered, refused=refused, rows=len(rows), tokens=tokens))
        finally:
            for stream, _ in running.values():
                stream.cancel()
            rows.close()
    return Progress(answered=answered, refused=refused, rows=len(rows), tokens=tokens)


def _prompt(row: dict[str, Any]) -> Prompt:
    given = [name for name in ("messages", "prompt") if name in row]
    if len(given) != 1:
        known = ", ".join(sorted(row)) or "nothing"
        raise UserError(f"a row needs either messages or prompt; it has {known}")
    prompt = row[given[0]]
    wanted = list if given[0] == "messages" else str
    if not isinstance(prompt, wanted):
        raise UserError(f"{given[0]} must be a {wanted.__name__}, got {type(prompt).__name__}")
    return prompt


def _line(completion: Completion, prompt_text: str) -> dict[str, Any]:
    message = parse(completion.text, prompt_text)
    return {
        "content": message.content,
        "reasoning": message.reasoning,
        "tool_calls": [{"name": c.name, "arguments": c.arguments} for c in message.tool_calls],
        "finish_reason": completion.finish_reason,
        "tokens": len(completion.tokens),
        "text": completion.text,
    }


def _digest(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as handle:
        while chunk := handle.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _open(answers: Path, note: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The lines that are there by row, after a torn last one has been cut off."""
    beside = answers.with_name(answers.name + ".settings.json")
    try:
        answers.parent.mkdir(parents=True, exist_ok=True)
        if answers.exists() and answers.stat().st_size:
            if not beside.exists():
                raise UserError(
                    f"{answers} is there, and no run of this command made it; give another file"
                )
            before = json.loads(beside.read_text())
            if before != note:
                raise UserError(
                    f"{answers} {_difference(before, note)}; delete it, or give another file"
                )
        else:
            temporary = beside.with_name(f"{beside.name}.tmp-{os.getpid()}")
            temporary.write_text(json.dumps(note, indent=2) + "\n")
            temporary.replace(beside)
            answers.touch()
        return dict(_lines(answers))
    except OSError as error:
        raise UserError(f"cannot use {answers}: {error.strerror}") from None


def _lines(answers: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    whole = 0
    with answers.open("rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            found = json.loads(line)
            yield found["row"], found
    os.truncate(answers, whole)


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    if before["prompts"] != now["prompts"]:
        return "has the answers to other prompts"
    old, new = before["settings"], now["settings"]
    name = next(name for name in {**old, **new} if old.get(name) != new.get(name))
    return f"was made with {name} {old.get(name)!r}, not {new.get(name)!r}"
