"""Scores of a run's generations, without a model: `python -m eval.score FOLDER`.

Judges every generation anew (after a change to how answers are read, say) and writes results.json. The run
does the same at its end with the verdicts that it has.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import results, store
from eval.asks import digest
from eval.fingerprint import data_digest
from eval.folder import RunFolder, write_json
from eval.store import Generation
from eval.task import Item, Protocol, Task
from eval.tasks import TASKS
from eval.verdicts import Isolation, Judged, Judging
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
    path: Path, known: Mapping[str, Task] = TASKS, isolation: Isolation = "bubblewrap"
) -> int:
    """Judge everything in a folder anew; returns the exit code. Raises UserError."""
    folder = RunFolder(path)
    if not folder.generations.is_file():
        raise UserError(f"{path} has no generations.jsonl; give the folder of an evaluation run")
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
    """Write results.json, print the table; returns the exit code: 1 if something could not be judged."""
    about = folder.about()
    verdicts: dict[str, Judged] = {}
    for found in judging.verdicts.values():
        verdicts.update(found)
    ids = {name: {item.id: item for item in found} for name, found in items.items()}
    generations = list(store.read(folder.generations))
    current = [one for one in generations if _is_current(one, tasks[one.task], ids[one.task])]
    cells = results.by_cell(current, verdicts)
    rows = []
    for (name, *_), samples in cells.items():
        rows.append(results.row(tasks[name], ids[name], samples))
    for one in rows:
        one["missing"] = _missing(one, about["cells"])
        one["model_name"] = about["models"].get(one["model"], {}).get("name", one["model"])
        one["dataset"] = about["tasks"][one["task"]]
    order = list(about["models"])
    rows.sort(
        key=lambda one: (one["task"], order.index(one["model"]) if one["model"] in order else -1)
    )
    warnings = [*about["notes"], *_warnings(rows)]
    if len(current) < len(generations):
        warnings.append(
            f"{len(generations) - len(current)} answers are to prompts that their benchmarks no longer ask so: "
            "they are kept, and not counted"
        )
    write_json(
        folder.results,
        {
            "results": rows,
            "models": about["models"],
            "speed": about["speed"],
            "warnings": warnings,
            "versions": about["starts"][-1]["versions"] if about["starts"] else {},
            "git": about["starts"][-1]["git"] if about["starts"] else None,
        },
    )
    if rows:
        names = {fingerprint: model["name"] for fingerprint, model in about["models"].items()}
        print(results.table(rows, names))
    for text in warnings:
        print(f"warning: {text}", file=sys.stderr)
    if judging.failures:
        print(
            f"error: {len(judging.failures)} answers could not be judged, the first: {judging.failures[0]}; "
            f"they are kept, and `python -m eval.score {folder.path}` judges them again",
            file=sys.stderr,
        )
    return 1 if judging.failures else 0


def _is_current(one: Generation, task: Task, items: Mapping[str, Item]) -> bool:
    """Whether the benchmark asks so now. After a change of its prompts a folder may have answers to both."""
    protocol: Protocol = "reference" if one.protocol == "reference" else "thinking"
    item = items.get(one.item)
    return item is not None and digest(
        [dict(message) for message in task.prompt(item, one.sample, protocol)]
    ) == digest(one.messages)


def _missing(one: Mapping[str, Any], planned: Sequence[Mapping[str, Any]]) -> int:
    """Answers that the run meant to have and has not (yet)."""
    names = ("task", "model", "protocol", "settings")
    for cell in planned:
        if all(cell[name] == one[name] for name in names):
            return max(0, cell["answers"] - one["answers"])
    return 0


def _warnings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for one in rows:
        where = f"{one['task']}, {one['model_name']}"
        if (one["identical_repeats"] or 0) > 0.5:
            found.append(
                f"{where}: the answers to {one['identical_repeats']:.0%} of the questions are copies of "
                "each other (a server that ignores `seed`?); the mean over samples is one of single answers"
            )
        if one["unfinished_thought"] > 0.1:
            found.append(
                f"{where}: {one['unfinished_thought']:.0%} of the thoughts did not end and count as wrong; "
                "raise generation.max_tokens"
            )
        if one["missing"]:
            found.append(
                f"{where}: {one['missing']} answers are missing; the same command adds them"
            )
    return found


if __name__ == "__main__":
    raise SystemExit(main())
