"""Which right answers are set against which wrong ones, and why others are not. Pure and deterministic.

Length is controlled twice, or the policy would learn to be long (or short): answers of a pair differ by a
factor at most, and of all that is possible the pair is taken that keeps the sums of lengths over all pairs
together. Answers that part late go together: what follows a first mistake is not to be unlearnt. Not here:
where verdicts come from.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from configs.verifiable import PairsConfig

#: Length of the pieces by which two texts are compared.
_PIECE = 5


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A judged answer. text: all that was written, with the token that ended it. length: in tokens.

    right: None where the verifier could not tell. failed: why there is no answer to judge ("truncated",
    "refused"), else "".
    """

    sample: int
    text: str
    length: int
    right: bool | None
    failed: str = ""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two answers to one prompt."""

    prompt: str
    chosen: Answer
    rejected: Answer


@dataclass(frozen=True, kw_only=True)
class Choice:
    """pairs: in the order of the prompts. prompts, answers: how many came to which end."""

    pairs: list[Pair]
    prompts: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)


def choose(
    groups: Iterable[tuple[str, int, Sequence[Answer]]], config: PairsConfig, max_length: int
) -> Choice:
    """Pairs of all prompts.

    groups: of every prompt its id, its length in tokens, and its answers. max_length: most tokens of a prompt
    and an answer.
    """
    choice, debt = Choice(pairs=[]), 0
    for prompt, prompt_length, answers in groups:
        usable = _usable(answers, config, max_length - prompt_length, choice.answers)
        good = [answer for answer in usable if answer.right]
        bad = [answer for answer in usable if not answer.right]
        possible, outcome = _possible(good, bad, config)
        used: set[int] = set()
        for _ in range(config.per_prompt):
            free = [p for p in possible if used.isdisjoint((p[0].sample, p[1].sample))]
            if not free:
                break
            a, b = min(
                free,
                key=lambda pair: (abs(debt + _longer(*pair)), -parting(pair[0].text, pair[1].text)),
            )
            debt += _longer(a, b)
            used |= {a.sample, b.sample}
            choice.pairs.append(Pair(prompt=prompt, chosen=a, rejected=b))
        choice.prompts[outcome] += 1
        choice.answers["in a pair"] += len(used)
        choice.answers["left over"] += len(usable) - len(used)
    return choice


def likeness(one: str, other: str) -> float:
    """Share of the 5-character pieces of two texts that are in both, from 0 to 1."""
    a, b = _pieces(one), _pieces(other)
    return len(a & b) / len(a | b) if a | b else 1.0


def parting(one: str, other: str) -> int:
    """Characters that both texts begin with."""
    unlike = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unlike, min(len(one), len(other)))


def _usable(
    answers: Sequence[Answer], config: PairsConfig, room: int, counts: Counter[str]
) -> list[Answer]:
    """Answers that may be paired; `counts` gets why others may not."""
    kept: list[Answer] = []
    for answer in answers:
        if answer.failed:
            counts[answer.failed] += 1
        elif answer.right is None:
            counts["unverifiable"] += 1
        elif answer.length > room:
            counts["too long"] += 1
        elif any(
            other.right == answer.right and likeness(other.text, answer.text) > config.likeness
            for other in kept
        ):
            counts["repeats another"] += 1
        else:
            kept.append(answer)
    return kept


def _possible(
    good: Sequence[Answer], bad: Sequence[Answer], config: PairsConfig
) -> tuple[list[tuple[Answer, Answer]], str]:
    """Pairs that may be made, and what becomes of the prompt."""
    if not good or not bad:
        return [], "all right" if good else "all wrong" if bad else "no usable answer"
    unlike = [(a, b) for a, b in product(good, bad) if likeness(a.text, b.text) <= config.likeness]
    if not unlike:
        return [], "right and wrong too alike"
    balanced = [
        (a, b)
        for a, b in unlike
        if max(a.length, b.length) <= config.length_ratio * min(a.length, b.length)
    ]
    return balanced, "paired" if balanced else "lengths too unequal"


def _longer(chosen: Answer, rejected: Answer) -> int:
    return chosen.length - rejected.length


def _pieces(text: str) -> set[str]:
    return {text[i : i + _PIECE] for i in range(max(1, len(text) - _PIECE + 1))}
