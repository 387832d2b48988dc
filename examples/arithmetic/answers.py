"""Asking a model, checking what it answers, and pairing right answers with wrong ones.

Here: from problems to judged answers to preference rows. Not here: sampling (gemma4_jax/sample),
what counts as the answer (gemma4_jax/verify), intervals (eval/stats.py).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby, product
from typing import Any

from examples.arithmetic.problems import Problem
from examples.arithmetic.recipe import MAX_NEW_TOKENS
from gemma4_jax.build import Model
from gemma4_jax.sample.sampler import Sampler
from gemma4_jax.text.parse import parse
from gemma4_jax.verify.answers import is_correct
from train.verifiable.pairs import parting

#: Answers that are decoded together, and prompts between two lines of progress.
_BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A judged answer.

    text: as the model wrote it, control tokens included. thought, content: its parts. right: the
    number in `content` is the expected one. well_formed: a closed thought, an answer, and the turn
    ended by the model itself.
    """

    chain: str
    question: str
    expected: str
    text: str
    thought: str
    content: str
    right: bool
    well_formed: bool

    def row(self) -> dict[str, Any]:
        """As a row of JSONL; `Answer(**row)` reads it back."""
        return asdict(self)


def ask(
    model: Model,
    problems: Sequence[Problem],
    say: Callable[[str], None],
    *,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """`samples` answers to each problem, those of one problem side by side, with thinking on."""
    sampler = Sampler(model, max_batch=_BATCH)
    asked = [problem for problem in problems for _ in range(samples)]
    answers: list[Answer] = []
    for start in range(0, len(asked), 2 * _BATCH):
        part = asked[start : start + 2 * _BATCH]
        completions = sampler.generate(
            [problem.prompt for problem in part],
            max_new_tokens=MAX_NEW_TOKENS,
            temperature=temperature,
            seed=[seed + start + i for i in range(len(part))],
            enable_thinking=True,
        )
        for problem, done in zip(part, completions, strict=True):
            answers.append(judge(problem, done.text, stopped=done.finish_reason == "stop"))
        right = sum(answer.right for answer in answers)
        say(f"  {len(answers)} of {len(asked)} answers, {right} right")
    return answers


def judge(problem: Problem, text: str, *, stopped: bool) -> Answer:
    """Check one answer. stopped: the model ended its turn."""
    message = parse(text)
    return Answer(
        chain=problem.chain,
        question=problem.question,
        expected=problem.answer,
        text=text,
        thought=message.reasoning or "",
        content=message.content or "",
        right=is_correct(text, problem.answer),
        well_formed=stopped and bool(message.reasoning) and bool(message.content),
    )


def make_pairs(answers: Iterable[Answer], per_problem: int = 2) -> list[dict[str, Any]]:
    """Preference rows: a right answer against a wrong one to the same question.

    answers: those of one problem side by side. Only well-formed ones are used, each at most once;
    problems answered all right or all wrong give nothing. Answers that part late go together: what
    a wrong answer says after its first mistake often follows from it, and is not to be unlearnt.
    """
    rows: list[dict[str, Any]] = []
    for question, group in groupby(answers, key=lambda answer: answer.question):
        usable = list({a.text: a for a in group if a.well_formed}.values())
        pairs = product((a for a in usable if a.right), (a for a in usable if not a.right))
        used: set[str] = set()
        for chosen, rejected in sorted(pairs, key=_parting, reverse=True):
            if len(used) < 2 * per_problem and used.isdisjoint((chosen.text, rejected.text)):
                used |= {chosen.text, rejected.text}
                rows.append(
                    {
                        "prompt": [{"role": "user", "content": question}],
                        "chosen": [_message(chosen)],
                        "rejected": [_message(rejected)],
                    }
                )
    return rows


def _parting(pair: tuple[Answer, Answer]) -> int:
    return parting(pair[0].text, pair[1].text)


def _message(answer: Answer) -> dict[str, str]:
    return {"role": "assistant", "reasoning": answer.thought, "content": answer.content}
