"""Verifiers: right, wrong, and why; on what follows the thought; whatever a model wrote around it."""

from pathlib import Path
from typing import Any

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.verify.judgement import exact_number, program_in
from gemma4_jax.verify.own import python_file
from gemma4_jax.verify.programs import input_output, same_output, unit_tests
from gemma4_jax.verify.sandbox import Sandbox
from gemma4_jax.verify.structured import json_schema, tool_calls, violation

BOX = Sandbox(isolation="weak")
UNFINISHED = "<|channel>thought\nlet me think\n```python\ndef f(x): return x + 1\n```\n42 {}"
TESTS = {"tests": "assert f(1) == 2", "functions": ["f"]}


def thought(text: str) -> str:
    return f"<|channel>thought\nno idea\n<channel|>{text}<turn|>"


def fenced(code: str) -> str:
    return thought(f"First:\n```\nnot this\n```\nHere:\n```python\n{code}\n```\nDone.")


def test_a_thought_that_never_ends_has_no_answer() -> None:
    note = "nothing after the thought"
    assert unit_tests(BOX)(UNFINISHED, TESTS).note == note
    assert input_output(BOX)(UNFINISHED, {"cases": [{"input": "", "output": ""}]}).note == note
    assert json_schema(UNFINISHED, {"schema": {}}).note == note
    assert exact_number(UNFINISHED, {"answer": 42}).note == "no number after the thought"
    # The same in a prompt that ended inside a thought.
    assert json_schema("[1]", {"schema": {}}, "<|channel>thought\n").score == 0.0


def test_exact_numbers() -> None:
    assert exact_number(thought("so 1,250"), {"answer": "1250"}).right
    wrong = exact_number(thought("7"), {"answer": 8})
    assert (wrong.right, wrong.note) == (False, "expected 8, got 7")


@pytest.mark.parametrize(
    ("content", "program"),
    [
        ("x = 1", "x = 1"),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("a\n```\ny\n```\nb\n```py\nx = 1\n```\nc", "x = 1\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("a\n```\ny\n```\n```python\nx = 1", "x = 1"),
        ("```python", ""),
        ("1. so:\n   ```python\n   x = 1\n   ```", "   x = 1\n"),
        ("inline ``` is none", "inline ``` is none"),
    ],
)
def test_the_program_is_the_last_block(content: str, program: str) -> None:
    assert program_in(content) == program


def test_unit_tests() -> None:
    verify = unit_tests(BOX)
    assert verify(fenced("def f(x): return x + 1"), TESTS).right
    wrong = verify(fenced("def f(x): return x"), TESTS)
    assert (wrong.right, wrong.note) == (False, "AssertionError:  at 'assert f(1) == 2'")
    assert not verify(fenced("exit(0)"), TESTS).right
    row = TESTS | {"preamble": "from math import floor\ndef f(x: float) -> int:\n    '''Doc.'''\n"}
    assert verify(fenced("def f(x): return floor(x) + 1"), row).right
    assert verify("    return floor(x) + 1", row).score == 0.0  # an indented rest is no program


def test_input_and_output() -> None:
    verify = input_output(BOX)
    row = {"cases": [{"input": "1 2", "output": "3"}, {"input": "2 2", "output": "4.0"}]}
    assert verify(fenced("print(sum(map(int, input().split())))"), row).right
    wrong = verify(fenced("input()\nprint(3)"), row)
    assert (wrong.right, wrong.note) == (False, "case 2: expected '4.0', got '3\\n'")
    wrong = verify(fenced("1 / 0"), row)
    assert wrong.note == "case 1: failed ZeroDivisionError: division by zero"
    with pytest.raises(UserError, match="at least one of 'cases'"):
        verify(fenced(""), {"cases": []})


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1\n", "1", True),
        (" 1 \n2\n\n", "1\n2", True),
        ("1.00 2", "1 2.0", True),
        ("yes", "YES", False),
        ("1 2", "1\n2", False),
        ("1\n\n2", "1\n2", False),
        ("0.3333", "0.33333", False),
        ("nan", "nan", True),
        ("", "", True),
        ("", "0", False),
    ],
)
def test_same_output(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ('{"n": 1}', ""),
        ('```json\n{"n": 1}\n```', ""),
        ('{"n": "1"}', "at $.n: '1' is not of type 'integer'"),
        ("[]", "at $: [] is not of type 'object'"),
        ('{"n": NaN}', "not JSON: NaN is not JSON"),
        ('{"n": 1} and more', "not JSON: Extra data: line 1 column 10 (char 9)"),
    ],
)
def test_json_schema(content: str, note: str) -> None:
    judged = json_schema(thought(content), {"schema": SCHEMA})
    assert (judged.note, judged.right) == (note, not note)


def test_hostile_json_and_wrong_schemas() -> None:
    assert not json_schema(thought("[" * 100_000), {"schema": {}}).right
    assert not json_schema(thought("9" * 10_000), {"schema": {"type": "integer"}}).right
    with pytest.raises(UserError, match="not a JSON schema"):
        violation({}, {"type": "objekt"})
    with pytest.raises(UserError, match="reference to nothing"):
        violation({}, {"$ref": "https://example.invalid/schema.json"})
    with pytest.raises(UserError, match="a row to verify needs 'schema', it has answer"):
        json_schema(thought("1"), {"answer": 1})


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The forecast.",
            "parameters": {
                "type": "OBJECT",
                "properties": {
                    "city": {"type": "STRING"},
                    "days": {"type": "integer", "nullable": True},
                    "nullable": {"type": "boolean"},
                },
                "required": ["city"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "description": "The time."}},
]


@pytest.mark.parametrize(
    ("written", "note"),
    [
        ('call:weather{city:<|"|>Oslo<|"|>}', ""),
        ('call:weather{city:<|"|>Oslo<|"|>,days:null}', ""),
        ('call:weather{city:<|"|>Oslo<|"|>,nullable:true}', ""),
        ("call:now{}", ""),
        ('call:wether{city:<|"|>Oslo<|"|>}', "no tool 'wether' (known: weather, now)"),
        ("call:weather{days:2}", "weather at $: 'city' is a required property"),
        (
            'call:weather{city:<|"|>O<|"|>,days:1.5}',
            "weather at $.days: 1.5 is not valid under any",
        ),
        ('call:weather{city:<|"|>O<|"|>,wind:1}', "weather at $: Additional properties are not"),
        ("call:now{zone:1}", "now takes no arguments"),
    ],
)
def test_tool_calls(written: str, note: str) -> None:
    judged = tool_calls(thought(f"<|tool_call>{written}<tool_call|>"), {"tools": TOOLS})
    assert judged.note.startswith(note)
    assert judged.right == (note == "")


def test_expected_calls() -> None:
    output = thought('<|tool_call>call:weather{city:<|"|>Oslo<|"|>,days:1}<tool_call|>')
    expected: dict[str, Any] = {"name": "weather", "arguments": {"city": "Oslo", "days": 1.0}}
    assert tool_calls(output, {"tools": TOOLS, "calls": [expected]}).right
    for other in (
        [],
        [expected] * 2,
        [{"name": "weather", "arguments": {"city": "Oslo", "days": True}}],
    ):
        judged = tool_calls(output, {"tools": TOOLS, "calls": other})
        assert not judged.right
        assert judged.note.startswith("expected [")
    assert tool_calls(thought("I will not."), {"tools": TOOLS, "calls": []}).right
    assert tool_calls(thought("I will not."), {"tools": TOOLS}).note == "no call"
    cut = '<|tool_call>call:weather{city:<|"|>Os'
    assert tool_calls(cut, {"tools": TOOLS}).note == "the call of weather is not complete"


def test_a_persons_own_verifier(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def verify(output, row):\n    return len(output) / row['length']")
    verify = python_file(path, BOX)
    assert verify(thought("abcd"), {"length": 4}).right
    assert verify(thought("ab"), {"length": 4}).score == 0.5
    assert verify(thought("ab"), {}).note == "mine.py: KeyError: 'length'"
    with pytest.raises(UserError, match=r"a number from 0 to 1, it returned 2\.0"):
        verify(thought("ab"), {"length": 1})
    path.write_text("def verify(output, row): return eval(output)")
    with pytest.raises(UserError, match="it returned None"):
        python_file(path, BOX)(thought("print('harm')"), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def check(output, row): return 1", "must define `def verify"),
        ("def verify(:", "is not Python"),
        (None, "cannot read the verifier"),
    ],
)
def test_a_file_that_is_no_verifier(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=message):
        python_file(path, BOX)
