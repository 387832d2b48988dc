"""IFEval: prompts that ask for things a program can check: so many words, no comma, all in capitals.

Reference: google-research/instruction_following_eval (Apache-2.0, arXiv 2311.07911), data `google/IFEval`:
key, prompt, instruction_id_list, kwargs (one object per instruction; nulls are left out). The prompt goes
out as it is. Strict: the answer as it stands; loose: also without its first line, its last line or its
asterisks. The score is strict and per prompt (all its instructions); the summary has all four accuracies,
and strict accuracy by group of instruction.

Checks: eval/instructions.py, which names their quirks and the five kinds that can differ. The reference
protocol differs in how it generates alone: greedy, 1280 tokens, as lm-eval does. Published: which of the
four accuracies Google prints was not found.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.instructions import check_arguments, follows, follows_loosely
from eval.published import of_gemma
from eval.rows import Row, read_rows, unique_items
from eval.task import Answer, Graded, Item, Message, Protocol, Settings, Task, Verdict
from gemma4_jax.errors import UserError


def load(path: Path) -> list[Item]:
    """Prompts of a file or folder; UserError for an unknown instruction or one without its arguments."""
    rows = read_rows(path, ("key", "prompt", "instruction_id_list", "kwargs"))
    return unique_items((row, _item(row)) for row in rows)


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """The prompt as it is."""
    return [{"role": "user", "content": item.data["prompt"]}]


def score(item: Item, answer: Answer) -> Verdict:
    """1 if all instructions of the prompt are followed, strictly."""
    asked = list(zip(item.data["kinds"], item.data["arguments"], strict=True))
    strict = [follows(kind, answer.text, arguments) for kind, arguments in asked]
    loose = [follows_loosely(kind, answer.text, arguments) for kind, arguments in asked]
    missed = [kind for kind, done in zip(item.data["kinds"], strict, strict=True) if not done]
    return Verdict(
        score=float(all(strict)),
        extracted=answer.text if answer.text.strip() else None,
        note=f"not followed: {', '.join(missed)}" if missed else "",
        details={"strict": strict, "loose": loose},
    )


def summary(graded: Sequence[Graded]) -> Mapping[str, float]:
    """Accuracies by prompt and by instruction, strict and loose, and strict ones of each group."""
    if not graded:
        return {}
    numbers = {}
    groups: dict[str, list[bool]] = {}
    for way in ("strict", "loose"):
        lists = [_followed(one, way) for one in graded]
        every = [done for each in lists for done in each]
        numbers[f"prompts, {way}"] = sum(all(each) for each in lists) / len(lists)
        numbers[f"instructions, {way}"] = sum(every) / len(every)
    for one in graded:
        for kind, done in zip(one.item.data["kinds"], _followed(one, "strict"), strict=True):
            groups.setdefault(kind.partition(":")[0], []).append(done)
    return numbers | {
        f"instructions, strict: {group}": sum(done) / len(done)
        for group, done in sorted(groups.items())
    }


def _followed(one: Graded, way: str) -> list[bool]:
    # A thought without an end is judged by others, without details: nothing was followed.
    return one.verdict.details.get(way) or [False] * len(one.item.data["kinds"])


def _item(row: Row) -> Item:
    kinds, arguments = _list(row, "instruction_id_list"), _list(row, "kwargs")
    if not kinds or len(kinds) != len(arguments):
        raise row.error(
            f"needs one 'kwargs' per instruction, got {len(arguments)} for {len(kinds)} instructions"
        )
    given = []
    for kind, values in zip(kinds, arguments, strict=True):
        if not isinstance(values, Mapping):
            raise row.error(f"'kwargs' must be objects, got {values!r:.60}")
        given.append({name: value for name, value in values.items() if value is not None})
        try:
            check_arguments(kind, given[-1])
        except UserError as error:
            raise row.error(str(error)) from None
    return Item(
        id=str(row.data["key"]),
        data={"prompt": row.text("prompt"), "kinds": kinds, "arguments": given},
    )


def _list(row: Row, column: str) -> list[Any]:
    """A list, or JSON text of one (as a CSV holds it)."""
    value = row.data[column]
    with contextlib.suppress(ValueError):
        value = json.loads(value) if isinstance(value, str) else value
    if not isinstance(value, list):
        raise row.error(f"{column!r} must be a list, got {value!r:.60}")
    return value


TASK = Task(
    name="ifeval",
    title="IFEval (prompts, strict)",
    load=load,
    prompt=prompt,
    score=score,
    settings={
        "thinking": Settings(max_tokens=32768, samples=1),
        "reference": Settings(
            max_tokens=1280, samples=1, thinking=False, temperature=0.0, top_p=None, top_k=None
        ),
    },
    published=of_gemma(98.9, 98.5, 97.2, 96.7, 94.6, note="which accuracy is not stated"),
    summary=summary,
)
