"""A miniature of `make demo-real` on made-up rules: every stage for real."""

import json
from pathlib import Path

import numpy as np
import pytest

from examples.ruff_rules.demo import run
from examples.ruff_rules.fixes import Fix
from examples.ruff_rules.margins import Scores
from examples.ruff_rules.recipe import MEASURES, Recipe, held_out_file
from examples.ruff_rules.summary import Stage, changes, rewards

MINI = Recipe(
    fixes=2, held_out_fixes=2, vocab_size=420, sft_length=128, sft_batch=2, sft_epochs=0.2, max_length=128,
    dpo_batch=4, dpo_epochs=0.3,
)  # fmt: skip

WORDS = ("alpha", "beta", "gamma", "delta", "list", "dict", "tuple", "value", "index", "name", "import",
         "return", "call", "open")  # fmt: skip


def made_up_rules(count: int) -> str:
    """Rules in the form that ruff prints them."""
    entries = []
    for i in range(count):
        a, b = WORDS[i % 14], WORDS[i * 5 % 13]
        explanation = (
            f"## What it does\nChecks for {a} before {b}.\n\n## Why is this bad?\n{a} is old.\n\n"
            f"## Example\n```python\nold_{a}({b}, {i})\n```\n\nUse instead:\n"
            f"```python\nnew_{a}({b}, {i})\n```\n"
        )
        name = f"{a}-{b}-{i}"
        entries.append(
            {"code": f"X{i:03}", "name": name, "summary": f"Use {b}", "explanation": explanation}
        )
    return json.dumps(entries)


def made_up_fixes(rules: int) -> list[Fix]:
    """One of every rule in each of six files."""
    return [
        Fix(code=f"X{i:03}", file=f"{file}.py", bad=f"old({i}, {file})", good=f"new({i}, {file})")
        for i in range(rules)
        for file in range(6)
    ]


@pytest.mark.slow
def test_the_whole_chain_and_then_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules, fixes = made_up_rules(60), made_up_fixes(60)
    stages = run(MINI, tmp_path / "run", rules, fixes)
    assert [stage.name for stage in stages] == ["untrained", "SFT", "DPO"]
    for kind in MEASURES:
        held_out = held_out_file(tmp_path / "run", kind).read_text().splitlines()
        scores = [stage.scores[kind] for stage in stages]
        assert len(held_out) > 5 and {s.logprobs.shape for s in scores} == {(len(held_out), 2)}
        assert all((s.logprobs < 0).all() for s in scores)
        assert scores[1].margins(scores[0]).any()
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "DPO against SFT" in capsys.readouterr().out

    again = run(MINI, tmp_path / "run", rules, fixes)
    assert capsys.readouterr().out.count("finished before") == 2
    for first, second in zip(stages, again, strict=True):
        for kind in MEASURES:
            assert (first.scores[kind].logprobs == second.scores[kind].logprobs).all()


def stage(name: str, logprobs: list[tuple[float, float]], tokens: tuple[int, int]) -> Stage:
    scores = Scores(
        logprobs=np.array(logprobs, np.float32), tokens=np.array([tokens] * len(logprobs))
    )
    return Stage(name=name, scores={"code": scores})


def test_likelier_as_a_whole_per_token_and_against_a_reference() -> None:
    before = stage("a", [(-4.0, -5.0), (-6.0, -5.0), (-8.0, -5.0)], (2, 1))
    after = stage("b", [(-4.0, -6.0), (-5.0, -6.0), (-8.0, -4.0)], (2, 1))
    assert before.scores["code"].likelier.tolist() == [True, False, False]
    assert before.scores["code"].likelier_per_token.tolist() == [True, True, True]
    assert after.scores["code"].margins(before.scores["code"]).tolist() == [1.0, 2.0, -1.0]
    [reward] = rewards([before, after], "code")
    assert reward[0] == "b against a"
    assert reward[1].startswith("0.667 [")
    assert reward[2].startswith("0.67 [")
    [change] = changes([before, after], "code")
    assert change[2:4] == ("0", "1")
