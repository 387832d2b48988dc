"""Scores of a run's generations, without a model: `python -m eval.score FOLDER`.

Judges every generation anew (after a change to how answers are read, say) and writes results.json. The run
does the same at its end with the verdicts that it has.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import store
from eval.fingerprint import data_digest
from eval.folder import RunFolder
from eval.outputs import write_results
from eval.report import model_name, table
from eval.results import Results
from eval.summarize import Source
from eval.task import Item, Task
from eval.tasks import tasks_with
from eval.verdicts import Isolation, Judging
from gemma4_jax.errors import UserError, report_user_errors, unknown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.score", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="folder of an evaluation run")
    parser.add_argument(
        "--sandbox",
        choices=("bubblewrap", "weak"),
        default="bubblewrap",
        help="how programs are kept in, where a benchmark runs them (default: bubblewrap)",
    )
    arguments = parser.parse_args(argv)
    with report_user_errors():
        return score(arguments.folder, isolation=arguments.sandbox)


def score(
    path: Path, known: Mapping[str, Task] | None = None, isolation: Isolation = "bubblewrap"
) -> int:
    """Judge everything in a folder anew; returns the exit code. known: benchmarks by name; None: ours, with
    what the run asked of them. Raises UserError."""
    folder = RunFolder(path)
    if not folder.generations.is_file():
        raise UserError(f"{path} has no generations.jsonl; give the folder of an evaluation run")
    if known is None:
        noted = folder.about()["tasks"]
        known = tasks_with({name: task.get("options", {}) for name, task in noted.items()})
    tasks, items = open_tasks(folder, known)
    generations = list(store.read(folder.generations))
    keys = {one.key for one in generations}
    with Judging(
        folder, list(tasks.values()), items, keys, isolation=isolation, again=True
    ) as judging:
        for one in generations:
            judging.add(one)
    return finish(folder, tasks, items, judging)


def open_tasks(
    folder: RunFolder, known: Mapping[str, Task], read: Mapping[str, list[Item]] | None = None
) -> tuple[dict[str, Task], dict[str, list[Item]]]:
    """The benchmarks that a folder has answers to, with all their items. UserError if a file is another now.

    read: items by benchmark, of files that were read and checked already.
    """
    tasks, items = {}, dict(read or {})
    for name, data in folder.about()["tasks"].items():
        if name not in known:
            raise unknown("benchmark", name, known)
        tasks[name] = known[name]
        if name in items:
            continue
        path = Path(data["path"])
        if data_digest(path) != data["sha256"]:
            raise UserError(f"{path} is not what {folder.path} was made with; put the old one back")
        items[name] = known[name].load(path)
    return tasks, items


def finish(
    folder: RunFolder,
    tasks: Mapping[str, Task],
    items: Mapping[str, Sequence[Item]],
    judging: Judging,
) -> int:
    """Write results.json and the report, print the table; returns the exit code: 1 if something could not be
    judged."""
    about = folder.about()
    if any(judging.verdicts.values()):
        sources = {
            name: Source(task=task, items=items[name], data=about["tasks"][name])
            for name, task in tasks.items()
        }
        found = write_results(folder.path, sources)
        print(table(found, about))
        print(f"every answer: {folder.path / 'report.html'}")
        warnings = [*about["notes"], *_warnings(found, about)]
        if others := sum(map(len, judging.verdicts.values())) - sum(one.samples for one in found):
            warnings.append(
                f"{others} answers are to prompts that their benchmarks no longer ask so; they are kept, and "
                "not counted"
            )
        for text in warnings:
            print(f"warning: {text}", file=sys.stderr)
    if judging.failures:
        print(
            f"error: {len(judging.failures)} answers could not be judged, the first: {judging.failures[0]}; "
            f"they are kept, and `python -m eval.score {folder.path}` judges them again",
            file=sys.stderr,
        )
    return 1 if judging.failures else 0


def _warnings(found: Sequence[Results], about: Mapping[str, Any]) -> list[str]:
    """What a person should know before believing the table; results.json has all notes."""
    warnings = []
    for one in found:
        where = f"{one.task}, {model_name(one.model, about)}"
        if (one.identical_repeats or 0) > 0.5:
            warnings.append(
                f"{where}: the answers to {one.identical_repeats:.0%} of the questions are copies of "
                "each other (a server that ignores `seed`?); the mean over samples is one of single answers"
            )
        if one.unfinished_thoughts > 0.1:
            warnings.append(
                f"{where}: {one.unfinished_thoughts:.0%} of the thoughts did not end and count as wrong; "
                "raise generation.max_tokens"
            )
        if one.samples < one.samples_asked:
            warnings.append(
                f"{where}: {one.samples_asked - one.samples} answers are missing; the same command asks again"
            )
    return warnings


if __name__ == "__main__":
    raise SystemExit(main())
