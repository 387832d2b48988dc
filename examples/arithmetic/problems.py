"""Arithmetic word problems with worked thoughts and answers that a program can check.

Here: the scenes, the numbers, and the split. A problem's chain ("12 + 5 - 3") decides by its hash
whether the problem is for training or held out, so no held-out chain is ever trained on, whatever
names and things it is told with. Not here: the chat format (gemma4_jax/text), checking answers
(gemma4_jax/verify).
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "held-out"]
Operator = Literal["+", "-", "*"]

#: One chain in so many is held out.
HELD_OUT_SHARE = 8

#: No number in a problem, a thought or an answer is above this.
LARGEST = 30

#: Numbers that are added or taken away are from 2 to this.
LARGEST_OPERAND = 9

#: Factors are from 2 to this.
LARGEST_FACTOR = 9

_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "keys", "pens", "shells", "stones", "toys")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a problem is told with. Placeholders: {a}, {b} people, {things}, {n}, {m} numbers.

    opening: sets the number {n}. grouped: sets {n} times {m}, or "" if the scene has no groups.
    more, fewer: add {n}, take {n} away. question: asks for the number at the end.
    """

    opening: str
    grouped: str
    more: tuple[str, ...]
    fewer: tuple[str, ...]
    question: str


SCENES = (
    Scene(
        opening="{a} has {n} {things}.",
        grouped="{a} has {n} bags with {m} {things} each.",
        more=("{b} gives {a} {n} more.", "{a} finds {n} more."),
        fewer=("{a} gives {n} to {b}.", "{a} loses {n}."),
        question="How many {things} does {a} have now?",
    ),
    Scene(
        opening="A bus leaves with {n} people.",
        grouped="",
        more=("At the next stop {n} get on.", "Then {n} more get on."),
        fewer=("At the next stop {n} get off.", "Then {n} get off."),
        question="How many people are on the bus?",
    ),
    Scene(
        opening="A shop has {n} {things}.",
        grouped="A shop has {n} boxes with {m} {things} each.",
        more=("A van brings {n} more.", "{a} brings {n} back."),
        fewer=("{a} buys {n}.", "The shop sells {n}."),
        question="How many {things} are in the shop?",
    ),
    Scene(
        opening="{a} starts a game with {n} points.",
        grouped="{a} wins {n} rounds for {m} points each.",
        more=("A lucky card adds {n}.", "{a} wins {n} more."),
        fewer=("A bad card takes {n}.", "{b} takes {n} of them."),
        question="How many points does {a} have?",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question and the chain of operations behind it: start, then (operator, operand) in order."""

    question: str
    start: int
    steps: tuple[tuple[Operator, int], ...]

    @property
    def chain(self) -> str:
        """The operations in order, applied from left to right: "12 + 5 - 3"."""
        return " ".join([str(self.start), *(f"{sign} {n}" for sign, n in self.steps)])

    @property
    def results(self) -> tuple[int, ...]:
        """Value after each step."""
        values = [self.start]
        for sign, n in self.steps:
            values.append(_apply(values[-1], sign, n))
        return tuple(values[1:])

    @property
    def answer(self) -> str:
        """The value after the last step, in digits."""
        return str(self.results[-1])

    @property
    def thought(self) -> str:
        """The worked steps, one equation a line."""
        values = (self.start, *self.results)
        return "\n".join(
            f"{value} {sign} {n} = {result}"
            for value, (sign, n), result in zip(values, self.steps, values[1:], strict=False)
        )

    @property
    def prompt(self) -> list[dict[str, str]]:
        """The question as messages."""
        return [{"role": "user", "content": self.question}]

    def row(self) -> dict[str, Any]:
        """A row of SFT data: the question, the worked thought, the answer."""
        answer = {"role": "assistant", "reasoning": self.thought, "content": self.answer}
        return {"messages": [*self.prompt, answer]}


def problems(split: Split, seed: int) -> Iterator[Problem]:
    """Endless problems of one side of the split, the same for the same seed."""
    rng = random.Random(f"{split} {seed}")
    while True:
        problem = _draw(rng)
        if split_of(problem.chain) == split:
            yield problem


def distinct(split: Split, count: int, seed: int) -> list[Problem]:
    """`count` problems of one side, no two with the same chain."""
    found: dict[str, Problem] = {}
    for problem in problems(split, seed):
        found.setdefault(problem.chain, problem)
        if len(found) == count:
            break
    return list(found.values())


def split_of(chain: str) -> Split:
    """The side that a chain of operations belongs to."""
    digest = hashlib.blake2b(chain.encode(), digest_size=8).digest()
    return "train" if int.from_bytes(digest) % HELD_OUT_SHARE else "held-out"


def _draw(rng: random.Random) -> Problem:
    """A problem of one to three steps; every value on the way is between 1 and LARGEST."""
    scene = rng.choice(SCENES)
    a, b = rng.sample(_NAMES, 2)
    words = {"a": a, "b": b, "things": rng.choice(_THINGS)}
    length = rng.randint(1, 3)
    steps: list[tuple[Operator, int]] = []
    if scene.grouped and rng.random() < 0.4:
        start = rng.randint(2, LARGEST_FACTOR)
        m = rng.randint(2, min(LARGEST_FACTOR, LARGEST // start))
        sentences = [scene.grouped.format(n=start, m=m, **words)]
        steps.append(("*", m))
        value = start * m
    else:
        value = start = rng.randint(2, LARGEST)
        sentences = [scene.opening.format(n=start, **words)]
    while len(steps) < length:
        sign, n = _step(rng, value)
        templates = scene.more if sign == "+" else scene.fewer
        sentences.append(rng.choice(templates).format(n=n, **words))
        steps.append((sign, n))
        value = _apply(value, sign, n)
    sentences.append(scene.question.format(**words))
    return Problem(question=" ".join(sentences), start=start, steps=tuple(steps))


def _step(rng: random.Random, value: int) -> tuple[Operator, int]:
    """Add or take away 2 to LARGEST_OPERAND, staying between 1 and LARGEST."""
    more, fewer = min(LARGEST_OPERAND, LARGEST - value), min(LARGEST_OPERAND, value - 1)
    if fewer < 2 or (more >= 2 and rng.random() < 0.5):
        return "+", rng.randint(2, more)
    return "-", rng.randint(2, fewer)


def _apply(value: int, sign: Operator, n: int) -> int:
    return value + n if sign == "+" else value - n if sign == "-" else value * n
