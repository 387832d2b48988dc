"""Answers that no reader of programs or formats may stumble over: long, unclosed, nothing but marks."""

import pytest

from eval.instructions import KINDS, follows, follows_loosely
from eval.programs import differs, last_block
from eval.tasks import codeforces, humaneval
from tests.eval.tasks.answers_written import INSTRUCTIONS

HOSTILE = [
    "[" * 100_000,
    "<<" * 50_000,
    "<<a>" * 25_000,
    "*" * 99_999,
    "* " * 50_000,
    "**a*" * 25_000,
    "\n" * 100_000,
    "\n *" * 30_000,
    " " * 100_000 + "-",
    "```a\n" * 20_000,
    "x```\ny" * 16_000,
    "```\n" * 25_001,
    "." * 100_000,
    "a." * 50_000,
    "a" * 100_000,
    "'" * 100_000,
    "1" * 100_000,
    "{" * 50_000,
    "***" * 30_000,
    "p." * 50_000,
    "def f(" * 15_000,
    "\x00\ud800",
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_every_reader_gets_through(number):
    text = HOSTILE[number]
    for found in (
        last_block(text),
        codeforces.extract(text, "thinking"),
        codeforces.extract(text, "reference"),
        humaneval.extract(text, "f"),
        differs(text, "1" * 50_000),
        differs("1e999999999", text),
    ):
        assert isinstance(found, str)
    for kind in KINDS:
        given = INSTRUCTIONS[kind][0]
        assert isinstance(follows(kind, text, given), bool)
        assert isinstance(follows_loosely(kind, text, given), bool)
