"""Rules of a linter as rows: the markdown, the split, the prompts."""

import json
from typing import Any

import pytest

from examples.ruff_rules.rules import (
    HELD_OUT_SHARE,
    Rule,
    dpo_rows,
    find_ruff,
    installed_rules,
    read_rules,
    sft_rows,
    split,
)

EXPLANATION = """## What it does
Checks for `x == None`.

## Why is this bad?
Identity is meant. It is quicker too.

## Example
```python
if x == None:
    pass
```

Use instead:
```python
if x is None:
    pass
```

## References
- [PEP 8](https://peps.python.org/pep-0008/)
"""


def entry(code: str | None = "E711", explanation: str = EXPLANATION) -> dict[str, Any]:
    summary = "Comparison to `None`"
    return {"code": code, "name": "none-comparison", "summary": summary, "explanation": explanation}


def rule(code: str, bad: str = "old()", good: str = "new()") -> Rule:
    return Rule(code=code, name="n", summary="s", what="w", why="y", bad=bad, good=good)


def sides(count: int = 60) -> tuple[list[str], list[str]]:
    """Codes of the training side and of the held-out side."""
    codes = [f"X{i}" for i in range(count)]
    return [c for c in codes if not rule(c).held_out], [c for c in codes if rule(c).held_out]


def test_sections_and_examples_are_found() -> None:
    [read] = read_rules(json.dumps([entry()]))
    assert read.what == "Checks for `x == None`."
    assert read.why == "Identity is meant. It is quicker too."
    assert (read.bad, read.good) == ("if x == None:\n    pass", "if x is None:\n    pass")
    assert read.question == (
        "none-comparison: Comparison to `None`\nIdentity is meant. It is quicker too.\n"
        "Show code that follows the rule."
    )


@pytest.mark.parametrize(
    "explanation",
    [
        EXPLANATION.replace("Use instead:", "Or:"),
        EXPLANATION.replace("## Example\n", "## Other\n"),
        EXPLANATION.replace("x is None", "x == None"),
        EXPLANATION.replace("```python\nif x is None:\n    pass\n```", "nothing"),
    ],
)
def test_without_two_different_examples_there_is_no_pair(explanation: str) -> None:
    rules = read_rules(json.dumps([entry(explanation=explanation)]))
    assert (rules[0].bad, rules[0].good) == ("", "")
    assert dpo_rows(rules) == []
    assert [row["messages"][1]["content"] for row in sft_rows(rules)] == ["Checks for `x == None`."]


def test_variants_of_the_markdown() -> None:
    many = EXPLANATION.replace(
        "## Example\n", "## Examples\n\nFirst:\n```pyi\nx != None\n```\nThen:\n"
    )
    many = many.replace("Use instead:", "Use instead, on Python 3.11:")
    [read] = read_rules(json.dumps([entry(explanation=many)]))
    assert (read.bad, read.good) == ("if x == None:\n    pass", "if x is None:\n    pass")


def test_rules_that_explain_nothing_are_left_out_and_a_missing_code_is_the_name() -> None:
    nothing = {**entry(), "explanation": None}
    read = read_rules(json.dumps([entry("Z1"), nothing, entry(None), entry("A1"), entry("B", "x")]))
    assert [r.code for r in read] == ["A1", "Z1", "none-comparison"]


def test_long_reasons_are_cut_at_a_sentence() -> None:
    reasons = "Short one. " + "Long " * 60 + ".\n\nMore."
    [read] = read_rules(
        json.dumps([entry(explanation=EXPLANATION.replace("Identity is meant.", reasons))])
    )
    assert read.question.splitlines()[1] == "Short one."


def test_the_split_is_by_rule_and_keeps_training_examples_out() -> None:
    train_codes, held_codes = sides()
    assert len(held_codes) == pytest.approx(60 / HELD_OUT_SHARE, abs=7)
    rules = [
        *(rule(code, f"old{code}()", f"new{code}()") for code in (*train_codes, *held_codes[:2])),
        rule(
            held_codes[2], "other()", f"new{train_codes[0]}()"
        ),  # shows what a training rule shows
        rule(held_codes[3], "", ""),
    ]
    train, held_out = split(rules)
    assert [r.code for r in train] == train_codes
    assert [r.code for r in held_out] == held_codes[:2]
    assert split(reversed(rules))[1][::-1] == held_out


def test_the_good_example_is_chosen_and_is_what_sft_learns() -> None:
    [pair] = dpo_rows([rule("X1")])
    assert (pair["chosen"][0]["content"], pair["rejected"][0]["content"]) == ("new()", "old()")
    learnt = [row["messages"] for row in sft_rows([rule("X1")])]
    assert learnt[1] == [pair["prompt"][0], pair["chosen"][0]]
    assert "old()" not in json.dumps(learnt)


@pytest.mark.skipif(find_ruff() is None, reason="ruff is not installed")
def test_the_installed_linter_has_hundreds_of_pairs() -> None:
    train, held_out = split(read_rules(installed_rules()))
    assert len(dpo_rows(train)) > 500
    assert len(dpo_rows(held_out)) > 100
    assert not {r.code for r in train} & {r.code for r in held_out}
    shown = {code for r in train for code in (r.bad, r.good)}
    assert not [r.code for r in held_out if {r.bad, r.good} & shown]
