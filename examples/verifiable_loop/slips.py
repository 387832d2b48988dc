"""Demonstrations of which a share is wrong, in the ways that people and their data are.

A model that learns from them is right sometimes: it has habits, good ones and bad ones, and draws between
them. That is what preferences choose among; what a model cannot do at all they do not teach. Not here:
problems and requests (examples/arithmetic/problems.py, requests.py).
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from examples.arithmetic.problems import LARGEST, Problem, problems
from examples.verifiable_loop.requests import Request, requests


def demonstrations(count: int, share: float, seed: int, every: int) -> Iterator[dict[str, Any]]:
    """`count` rows of SFT data, of which about a share of `share` is wrong.

    Every so many-th is a request, the others are word problems.
    """
    rng = random.Random(f"slips {seed}")
    sums, asked = problems("train", seed), requests("train", seed)
    for i in range(count):
        slipped = rng.random() < share
        if (i + 1) % every:
            problem = next(sums)
            yield (_slip(problem, rng) if slipped else problem).row()
        else:
            request = next(asked)
            yield request.call_row(_misfit(request, rng) if slipped else request.arguments)


def _slip(problem: Problem, rng: random.Random) -> Problem:
    """The last step left out, or taken the wrong way; told as the same question."""
    *before, (sign, n) = problem.steps
    if before and rng.random() < 0.5:
        return replace(problem, steps=tuple(before))
    value = problem.results[-2] if before else problem.start
    other = value - n if sign == "+" else value + n
    if not 1 <= other <= LARGEST:  # numbers beyond are not in the format: stay at the value
        return replace(problem, steps=(*before, ("+", 0)))
    return replace(problem, steps=(*before, ("-" if sign == "+" else "+", n)))


def _misfit(request: Request, rng: random.Random) -> dict[str, Any]:
    """Arguments that the tool's schema does not allow: a number as text, a word not listed, one left out."""
    arguments = dict(request.arguments)
    match rng.randrange(3):
        case 0:
            arguments[request.number] = str(arguments[request.number])
        case 1:
            arguments[request.word] = f"the {arguments[request.word]}"
        case _:
            del arguments[request.word]
    return arguments
