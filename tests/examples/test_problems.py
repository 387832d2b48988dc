"""Problems are deterministic, right, bounded, in the chat format, and on one side of the split."""

import re
from itertools import islice

import pytest

from examples.arithmetic.problems import (
    HELD_OUT_SHARE,
    LARGEST,
    SCENES,
    Problem,
    distinct,
    problems,
    split_of,
)
from gemma4_jax.text import chat
from gemma4_jax.text.parse import parse
from gemma4_jax.verify.answers import is_correct

MANY = 3000


@pytest.fixture(scope="module")
def train() -> list[Problem]:
    return list(islice(problems("train", 0), MANY))


def test_the_same_seed_gives_the_same_problems(train: list[Problem]) -> None:
    assert list(islice(problems("train", 0), MANY)) == train
    assert list(islice(problems("train", 1), MANY)) != train


def test_no_held_out_chain_is_ever_trained_on(train: list[Problem]) -> None:
    held_out = distinct("held-out", 300, 7)
    assert {p.chain for p in train}.isdisjoint(p.chain for p in held_out)
    assert len({p.chain for p in held_out}) == 300
    chains = {p.chain for p in train} | {p.chain for p in islice(problems("held-out", 0), 500)}
    assert {split_of(chain) for chain in chains} == {"train", "held-out"}


def test_about_one_chain_in_eight_is_held_out() -> None:
    chains = [f"{a} + {b}" for a in range(100) for b in range(20)]
    share = sum(split_of(chain) == "held-out" for chain in chains) / len(chains)
    assert share == pytest.approx(1 / HELD_OUT_SHARE, abs=0.03)


def test_answers_are_those_of_the_chain(train: list[Problem]) -> None:
    for problem in train[:500]:
        value, *rest = problem.chain.split()
        for sign, n in zip(rest[::2], rest[1::2], strict=True):
            value = str(eval(f"{value} {sign} {n}"))  # digits and one operator, made above
        assert problem.answer == value
        assert problem.thought.splitlines()[-1].endswith(f"= {value}")
        assert all(0 < result <= LARGEST for result in (problem.start, *problem.results))


def test_a_question_tells_every_number_in_order_and_nothing_more(train: list[Problem]) -> None:
    for problem in train[:500]:
        assert re.findall(r"\d+", problem.question) == re.findall(r"\d+", problem.chain)
        assert "{" not in problem.question


def test_there_are_one_to_three_steps_of_every_kind(train: list[Problem]) -> None:
    assert {len(problem.steps) for problem in train} == {1, 2, 3}
    assert {sign for problem in train for sign, _ in problem.steps} == {"+", "-", "*"}
    for scene in SCENES:
        asked = scene.question.split("{")[0]
        assert any(asked in problem.question for problem in train)


def test_a_row_goes_through_the_chat_format_and_back(train: list[Problem]) -> None:
    problem = train[0]
    text = chat.render(
        problem.row()["messages"],
        enable_thinking=True,
        family="small",
        add_generation_prompt=False,
    )
    said = parse(text.split("<|turn>model\n")[1])
    assert (said.reasoning, said.content) == (problem.thought, problem.answer)
    assert is_correct(text.split("<|turn>model\n")[1], problem.answer)
