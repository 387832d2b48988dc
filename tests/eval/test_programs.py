"""Comparing outputs, blocks of code, pass@k, and running tests in the sandbox."""

import pytest

from eval.programs import Case, blocks, differs, failed_case, last_block
from gemma4_jax.verify.sandbox import Limits, Sandbox
from tests.eval.tasks.support import needs_bubblewrap


@pytest.mark.parametrize(
    ("output", "expected", "equal"),
    [
        ("7\n", "7", True),
        ("  7  \n\n", "7", True),
        ("a\n  b\n", "a \nb", True),
        ("1.0 2", "1 2.00", True),
        ("1e3", "1000", True),
        ("+5", "5", True),
        ("0.1", "0.10000000000000001", False),
        ("50000000000000000", "50000000000000001", False),
        ("1  2", "1 2", True),  # as numbers
        ("a  b", "a b", False),  # as text
        ("a\n\nb", "a\nb", False),
        ("1\n2", "1 2", False),
        ("NaN", "nan", False),
        ("YES", "Yes", False),
        ("", "", True),
        ("", "0", False),
        ("1_0", "10", True),
    ],
)
def test_equal_outputs(output, expected, equal):
    assert (differs(output, expected) == "") == equal


def test_last_block_and_its_quirks():
    assert last_block("```python\na\n```\n```\nb\nc\n```") == "b\nc"
    assert last_block("```python\na") == ""
    assert last_block("```python\na\n```\ntext\n```python\nb") == "text"
    assert last_block("use ``` here\nx\nand ``` here") == "x"


def test_blocks():
    assert blocks("x\n```python\na\nb\n```\ny\n  ```\n  c\n  ```\n") == ["a\nb\n", "  c\n"]
    assert blocks("```python\nunfinished") == []
    assert blocks("an `inline` and ```inline``` one") == []


@needs_bubblewrap
def test_first_failing_case():
    cases = [Case("1 2\n", "3\n"), Case("4 5\n", "9\n")]
    limits = Limits(seconds=5.0)
    program = "print(sum(map(int, input().split())))"
    assert failed_case(Sandbox(), program, cases, limits) == ""
    assert failed_case(Sandbox(), "print(3)", cases, limits) == (
        "test 2 of 2: line 1: expected '9', got '3'"
    )
    assert (
        failed_case(Sandbox(), "raise KeyError('x')", cases, limits) == "test 1 of 2: KeyError: 'x'"
    )
    assert failed_case(Sandbox(), "exit(3)", cases, limits) == "test 1 of 2: exit code 3"
    assert failed_case(Sandbox(), "while True: pass", cases[:1], Limits(seconds=1.0)) == (
        "test 1 of 1: timeout"
    )
    flood = "while True: print('x' * 1000)"
    assert failed_case(Sandbox(), flood, cases, limits) == "test 1 of 2: output"
    # A right answer is never cut off, however long.
    long = "y" * 300_000
    assert failed_case(Sandbox(), "print(input())", [Case(long, long)], limits) == ""
