"""Scoring beside generation: answers go in, verdicts are judged by a few threads and kept as lines.

    verdicts/TASK.jsonl   {"key", "task", "item", "sample", "score", "extracted", "note", "details", "category"}

`key` is that of the generation. The file can always be made again from generations.jsonl (`python -m
eval.score`). Threads are enough: what takes long (programs in a sandbox) runs in processes of its own. Not
here: what scores add up to (`summarize.py`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from eval.folder import RunFolder, write_text
from eval.store import Generation
from eval.task import Answer, Item, Protocol, Task, Verdict
from gemma4_jax.errors import UserError
from gemma4_jax.verify.sandbox import Sandbox

Isolation = Literal["bubblewrap", "weak"]

_THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A verdict as a line of its file; the fields of `task.Verdict`, and what it is of."""

    key: str
    task: str
    item: str
    sample: int
    score: float
    extracted: str | None
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    category: str = ""

    @property
    def verdict(self) -> Verdict:
        """Without what it is of."""
        return Verdict(
            score=self.score, extracted=self.extracted, note=self.note, details=self.details
        )


def judge(task: Task, item: Item, generation: Generation, sandbox: Sandbox | None) -> Line:
    """The verdict on one generation. One that ended inside its thought is wrong, whatever it thought."""
    if generation.unfinished_thought:
        verdict = Verdict(score=0.0, extracted=None, note="the thought did not end")
    else:
        protocol: Protocol = "reference" if generation.protocol == "reference" else "thinking"
        verdict = task.score(
            item,
            Answer(
                text=generation.answer,
                sample=generation.sample,
                protocol=protocol,
                sandbox=sandbox if task.runs_programs else None,
            ),
        )
    return Line(
        key=generation.key,
        task=task.name,
        item=item.id,
        sample=generation.sample,
        category=item.category,
        score=float(verdict.score),
        extracted=verdict.extracted,
        note=verdict.note,
        details=dict(verdict.details),
    )


def read(file: Path) -> dict[str, Line]:
    """Verdicts by key. Lines that cannot be read are left out: they are judged again."""
    found: dict[str, Line] = {}
    if not file.is_file():
        return found
    for line in file.read_text("utf-8", "surrogatepass").split("\n"):
        try:
            one = Line(**json.loads(line))
        except (ValueError, TypeError):
            continue
        found[one.key] = one
    return found


class Judging:
    """Verdicts of a run, those from before included.

    Leave the context to wait for all of them and to write each file in order: that of items, then samples.
    """

    def __init__(
        self,
        folder: RunFolder,
        tasks: Collection[Task],
        items: Mapping[str, Iterable[Item]],
        known: Collection[str],
        *,
        isolation: Isolation = "bubblewrap",
        again: bool = False,
    ) -> None:
        """items: of each task, by its name. known: keys of the generations that there are; verdicts of others
        go. isolation: of programs. again: judge anew what has a verdict."""
        self._folder = folder
        self._tasks = {task.name: task for task in tasks}
        self._items = {name: {item.id: item for item in found} for name, found in items.items()}
        self._sandbox = _tried(isolation) if any(t.runs_programs for t in tasks) else None
        self.verdicts: dict[str, dict[str, Line]] = {}  # by task, by key
        for task in tasks:
            before = {} if again else read(folder.verdicts(task.name))
            self.verdicts[task.name] = {k: v for k, v in before.items() if k in known}
        self.failures: list[str] = []
        self._sums: dict[tuple[str, str], tuple[int, float]] = {}  # by benchmark and model
        self._lock = threading.Lock()
        self._files: dict[str, TextIO] = {}
        self._pool = ThreadPoolExecutor(_THREADS)

    def add(self, generation: Generation) -> None:
        """Judge a generation soon, unless it was. UserError for one of a benchmark that is not known here."""
        if generation.task not in self._tasks:
            raise UserError(
                f"{self._folder.generations} has answers to {generation.task}, of which run.json says nothing; "
                "put run.json back, or name the benchmark under --tasks"
            )
        before = self.verdicts[generation.task].get(generation.key)
        if before is None:
            self._pool.submit(self._judge, generation)
            return
        with self._lock:
            self._count(generation, before)

    def running(self, model: str) -> dict[str, tuple[int, float]]:
        """(answers judged, their mean score) of a model by benchmark, as of now."""
        with self._lock:
            return {
                task: (n, total / n)
                for (task, of), (n, total) in sorted(self._sums.items())
                if of == model
            }

    def _count(self, generation: Generation, one: Line) -> None:
        n, total = self._sums.get((generation.task, generation.model), (0, 0.0))
        self._sums[generation.task, generation.model] = n + 1, total + one.score

    def _judge(self, generation: Generation) -> None:
        task = self._tasks[generation.task]
        try:
            item = self._items[generation.task].get(generation.item)
            if item is None:
                raise UserError(f"{task.name} has no item {generation.item!r} any more")
            one = judge(task, item, generation, self._sandbox)
            line = _line(one)
        except Exception as error:  # whatever a benchmark's code raises must not cost generations
            where = f"{generation.task} item {generation.item} sample {generation.sample}"
            with self._lock:
                self.failures.append(f"{where}: {type(error).__name__}: {error}")
            return
        with self._lock:
            self.verdicts[task.name][one.key] = one
            self._count(generation, one)
            self._append(one.task, line)

    def _append(self, task: str, line: str) -> None:
        if task not in self._files:
            file = self._folder.verdicts(task)
            file.parent.mkdir(parents=True, exist_ok=True)
            self._files[task] = file.open("a", encoding="utf-8", errors="surrogatepass")
        self._files[task].write(line)
        self._files[task].flush()

    def __enter__(self) -> Judging:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        # After an error or Ctrl-C nobody waits for programs: what is not judged now is judged next time.
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        for file in self._files.values():
            file.close()
        if kind is None:
            for name, found in self.verdicts.items():
                in_order = sorted(found.values(), key=lambda v: (v.item, v.sample, v.key))
                write_text(self._folder.verdicts(name), "".join(map(_line, in_order)))


def _tried(isolation: Isolation) -> Sandbox:
    """A sandbox that works; UserError now, and not after hours of generating, where none can be made."""
    sandbox = Sandbox(isolation=isolation)
    outcome = sandbox.run("print(1)")
    if outcome.stdout != "1\n":
        raise UserError(
            f"the sandbox does not run programs here ({outcome.status}: {outcome.stderr[-200:]})"
        )
    return sandbox


def _line(one: Line) -> str:
    row = {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}
    return json.dumps(row, ensure_ascii=False) + "\n"
