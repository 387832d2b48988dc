"""The held-out problems as a benchmark: what `eval` needs to know of them, and one model's answers to all.

Here: from problems to a file, a task and judged answers. Not here: generating, resuming and scoring (eval/).
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.evals import EvalConfig, EvalModel, GenerationConfig
from eval import store, verdicts
from eval.folder import RunFolder
from eval.run import run
from eval.task import Answer as Text
from eval.task import Item, Message, Protocol, Settings, Task, Verdict
from examples.arithmetic.answers import Answer, judge
from examples.arithmetic.problems import Problem
from examples.arithmetic.recipe import MAX_LENGTH, MAX_NEW_TOKENS
from examples.folder import read_rows, write_rows
from gemma4_jax.errors import UserError
from gemma4_jax.verify.answers import answer_number, is_correct

_NAME = "held_out"
# Answers that are written together: more are no faster on two cores, and have more programs to compile.
_SLOTS = 32


def load(path: Path) -> list[Item]:
    """Rows of chain, question, expected; no chain is there twice."""
    return [
        Item(id=row["chain"], data=row, category=f"{len(row['chain'].split()) // 2} steps")
        for row in read_rows(path)
    ]


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """The question as it stands."""
    return [{"role": "user", "content": item.data["question"]}]


def score(item: Item, answer: Text) -> Verdict:
    """Whether the number is the expected one."""
    number = answer_number(answer.text)
    return Verdict(
        score=float(is_correct(answer.text, item.data["expected"])),
        extracted=None if number is None else str(number),
    )


HELD_OUT = Task(
    name=_NAME,
    title="Held-out word problems",
    load=load,
    prompt=prompt,
    score=score,
    settings={"thinking": Settings(max_tokens=MAX_NEW_TOKENS, samples=1, temperature=0.0)},
)


def measure(model: Path, problems: Sequence[Problem], folder: Path, seed: int) -> list[Answer]:
    """A model's greedy answers, in the order of the problems; none is asked for twice."""
    file = folder / "held-out.jsonl"
    if not file.is_file():
        write_rows(
            file,
            ({"chain": p.chain, "question": p.question, "expected": p.answer} for p in problems),
        )
    config = EvalConfig(
        model=EvalModel(
            path=str(model),
            dtype="float32",
            max_slots=_SLOTS,
            max_tokens=_SLOTS * (MAX_LENGTH + MAX_NEW_TOKENS),
        ),
        tasks=(f"{_NAME}={file}",),
        generation=GenerationConfig(),
        workdir=str(folder / "eval"),
        seed=seed,
    )
    if run(config, {_NAME: HELD_OUT}):
        raise UserError(f"not all problems could be asked or judged; see {folder / 'eval'}")
    return _answers(RunFolder(config.workdir), str(model), problems)


def _answers(folder: RunFolder, model: str, problems: Sequence[Problem]) -> list[Answer]:
    """What the run kept of one model, as the demo shows it."""
    models = folder.about()["models"]
    fingerprint = next(key for key, known in models.items() if known["where"] == model)
    judged = verdicts.read(folder.verdicts(_NAME))
    written = {one.item: one for one in store.read(folder.generations) if one.model == fingerprint}
    answers = []
    for problem in problems:
        one = written[problem.chain]
        told = judge(problem, one.text, stopped=one.finish_reason == "stop")
        answers.append(replace(told, right=judged[one.key].score == 1))
    return answers
