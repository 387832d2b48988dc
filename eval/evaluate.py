"""The chain of a run: benchmarks and models to asks, answers to the store, and verdicts beside it.

    for each model: what is not in the store yet -> back end -> store -> judging
    at the end: results.json, the table

Here: who does what when. Several processes (one model over the devices of several hosts) generate together; the
main one alone has the store and scores. Not here: command lines (run.py, sweep.py).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.evals import EvalConfig
from eval import store
from eval.asks import Ask, Cell, as_json, choose, in_order, resolve
from eval.backend import Refusal, Reply, Source, generation
from eval.fingerprint import data_digest
from eval.folder import RunFolder
from eval.progress import Progress, Scores, say
from eval.score import finish, open_tasks
from eval.store import Store
from eval.task import Item, Task
from eval.verdicts import Judging
from gemma4_jax.distributed import is_main
from gemma4_jax.errors import unknown


@dataclass(frozen=True, kw_only=True)
class _Benchmark:
    """A benchmark's file, read. chosen: the items that are asked."""

    task: Task
    path: str
    sha256: str
    items: list[Item]
    chosen: list[Item]


@dataclass
class _Desk:
    """What the main process writes to."""

    folder: RunFolder
    store: Store
    judging: Judging
    progress: Progress
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)  # by model and benchmark
    example: str = ""  # the first that was refused

    def take(self, ask: Ask, reply: Reply | Refusal) -> None:
        """Keep an answer and have it judged; a refusal is only counted: the next run asks again."""
        if isinstance(reply, Refusal):
            self._refuse(ask, reply)
            return
        made = generation(ask, reply)
        self.store.append(made)
        self.judging.add(made)
        self.progress.add(reply)

    def _refuse(self, ask: Ask, refusal: Refusal) -> None:
        """The first of a model and benchmark is told at once: there is time yet to change something."""
        item, cell = f"{ask.task} item {ask.item.id}", (ask.model, ask.task)
        if cell not in self.refused and refusal.of_all:
            say(f"warning: {ask.task} cannot be asked with these settings at all: {refusal.why}")
        elif cell not in self.refused:
            say(f"warning: {item} is left out: {refusal.why}")
        self.refused[cell] += 1
        self.example = self.example or f"{item}: {refusal.why}"


def evaluate(
    variants: Sequence[EvalConfig], sources: Sequence[Source], known: Mapping[str, Task]
) -> int:
    """Ask every model every benchmark in every way, score, print; returns the exit code. Raises UserError.

    variants: one run with different settings. known: benchmarks by name.
    """
    config = variants[0]
    benchmarks = _read_benchmarks(config, known)
    plans = [(source, _cells(variants, benchmarks, source.fingerprint)) for source in sources]
    asks = [(source, _unique(in_order(cells, config.seed))) for source, cells in plans]
    if not is_main():
        for source, all_of_them in asks:
            _follow(source, _left(all_of_them, None))
        return 0
    folder = RunFolder(config.workdir)
    with Store(folder.generations) as opened:
        if opened.torn:
            print(f"cut off {opened.torn} bytes that a kill had left unfinished", file=sys.stderr)
        _note(folder, config, benchmarks, plans)
        tasks, items = open_tasks(folder, known, {one.task.name: one.items for one in benchmarks})
        total = sum(len(some) for _, some in asks)
        there = sum(ask.key in opened.keys for _, some in asks for ask in some)
        if there:
            print(f"{there} of {total} answers are there already", file=sys.stderr)
        with Judging(
            folder, list(tasks.values()), items, opened.keys, isolation=config.sandbox
        ) as judging:
            for one in store.read(folder.generations):
                judging.add(one)
            desk = _Desk(folder, opened, judging, Progress(there, total))
            for source, some in asks:
                _generate(source, _left(some, opened.keys), desk)
    code = finish(folder, tasks, items, judging)
    if desk.refused:
        print(
            f"error: {desk.refused.total()} of {total} could not be asked, the first: {desk.example}",
            file=sys.stderr,
        )
    return 1 if desk.refused else code


def _generate(source: Source, asks: Sequence[Ask], desk: _Desk) -> None:
    """Answers of one model, to the desk."""
    if not asks:
        return
    print(f"{source.name}: {len(asks)} answers to generate ({source.where})", file=sys.stderr)
    backend = source.open()
    _say_notes(source, desk.folder)

    def scores() -> Scores:
        return desk.judging.running(source.fingerprint)

    answers = backend.answers(iter(asks))
    try:
        for found in answers:
            if found is not None:
                desk.take(*found)
            desk.progress.show(scores, backend.speed)
    finally:
        answers.close()
    speed = backend.speed()
    desk.progress.show(scores, backend.speed, last=True)
    print(_end_line(source.name, speed), file=sys.stderr)
    entry = {"model": source.fingerprint, **{k: round(v, 4) for k, v in speed.items()}}
    desk.folder.update(speed=[*desk.folder.about()["speed"], entry])


def _follow(source: Source, asks: Sequence[Ask]) -> None:
    """Another process's share of generating: the same steps, and nothing to keep."""
    if asks:
        for _ in source.open().answers(iter(asks)):
            pass


def _say_notes(source: Source, folder: RunFolder) -> None:
    """What a back end has found out about itself, on the terminal and beside the scores."""
    before = folder.about()["notes"]
    new = [f"{source.name}: {text}" for text in source.notes()]
    for text in new:
        print(f"warning: {text}", file=sys.stderr)
    folder.update(notes=[*before, *(text for text in new if text not in before)])


def _end_line(name: str, speed: Mapping[str, float]) -> str:
    """How fast a model was, and how busy it was kept."""
    seconds = max(speed["seconds"], 1e-9)
    line = f"{name}: {speed['tokens'] / seconds:.0f} tokens/s over {seconds:.0f} s"
    if "engine_busy" in speed:
        line += (
            f"; the engine ran {speed['engine_busy']:.1%} of the time, with {speed['rows_in_use']:.1%} of "
            "its rows in use while there was work for all"
        )
    return line


def _read_benchmarks(config: EvalConfig, known: Mapping[str, Task]) -> list[_Benchmark]:
    found = []
    for name, path in config.paths().items():
        if name not in known:
            raise unknown("benchmark", name, known)
        sha256 = data_digest(Path(path))
        items = known[name].load(Path(path))
        chosen = choose(items, config.limit, config.limit_by, config.seed)
        found.append(
            _Benchmark(task=known[name], path=path, sha256=sha256, items=items, chosen=chosen)
        )
    return found


def _cells(
    variants: Sequence[EvalConfig], benchmarks: Sequence[_Benchmark], model: str
) -> list[Cell]:
    return [
        Cell(
            task=one.task,
            items=one.chosen,
            model=model,
            protocol=variant.protocol,
            settings=resolve(one.task, variant.protocol, variant.generation),
            seed=variant.seed,
        )
        for variant in variants
        for one in benchmarks
    ]


def _unique(asks: Iterable[Ask]) -> list[Ask]:
    """Each once: two ways of asking may be the same for a benchmark."""
    return list({ask.key: ask for ask in asks}.values())


def _left(asks: Sequence[Ask], done: Collection[str] | None) -> list[Ask]:
    """What is not in the store yet, the same in all processes. done: None where there is no store."""
    mask = np.array([done is None or ask.key not in done for ask in asks], bool)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        mask = multihost_utils.broadcast_one_to_all(mask)
    return [ask for ask, wanted in zip(asks, mask, strict=True) if wanted]


def _note(
    folder: RunFolder,
    config: EvalConfig,
    benchmarks: Sequence[_Benchmark],
    plans: Sequence[tuple[Source, Sequence[Cell]]],
) -> None:
    """What is about to be run, into run.json."""
    for one in benchmarks:
        options = config.options().get(one.task.name)
        folder.open_task(one.task.name, str(Path(one.path).absolute()), one.sha256, options)
    about = folder.about()
    models, cells = about["models"], about["cells"]
    for source, planned in plans:
        models[source.fingerprint] = {"name": source.name, "where": source.where}
        for cell in planned:
            line: dict[str, Any] = {
                "task": cell.task.name,
                "model": cell.model,
                "protocol": cell.protocol,
                "settings": as_json(cell.settings, cell.seed),
                "answers": len(cell.items) * cell.settings.samples,
            }
            cells = [old for old in cells if not _same_cell(old, line)] + [line]
    folder.update(models=models, cells=cells)
    folder.note_start(config)


def _same_cell(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one[name] == other[name] for name in one if name != "answers")
