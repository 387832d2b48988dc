"""Real questions out of a package: the converters, and whole runs of load, prompt and score on them.

The wheel of lm-eval 0.4.13 is looked for where `make test` puts it, in `questions` beside the environment's
packages, and in `questions` of the shared material; without it the real half is skipped.
"""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from eval.packaged import extract
from eval.task import Answer, Graded
from eval.tasks import TASKS
from gemma4_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
WHEEL = "lm_eval-0.4.13-py3-none-any.whl"


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    shared = Path(os.environ.get("GEMMA4_SHARED", ROOT.parent / "shared"))
    wheels = [folder / "questions" / WHEEL for folder in (Path(sys.prefix), shared)]
    wheel = next(filter(Path.is_file, wheels), None)
    if wheel is None:
        pytest.skip(f"no {WHEEL} in {wheels[0].parent}; `make test` fetches it")
    out = tmp_path_factory.mktemp("packaged")
    return out, extract(wheel, out)


def _graded(items, task, protocol, reply):
    """Every item asked and answered once: prompt and score of the same sample."""
    graded = []
    for item in items:
        (message,) = task.prompt(item, 0, protocol)
        assert item.data.get("question", item.data.get("input")) in message["content"]
        verdict = task.score(item, Answer(text=reply(item), protocol=protocol))
        graded.append(Graded(item=item, sample=0, verdict=verdict))
    return graded


def _mean(graded):
    return sum(one.verdict.score for one in graded) / len(graded)


def test_mmlu_in_eight_languages(real):
    out, counts = real
    task = TASKS["mmmlu"]
    items = task.load(out / "mmmlu")
    languages = Counter(item.category for item in items)
    assert {name: counts[f"mmmlu/mmlu_{name}.csv"] for name in languages} == languages
    # Of the 282 English ones, one has five choices.
    assert languages == {
        **dict.fromkeys(("DE-DE", "ES-LA", "FR-FR", "HI-IN", "IT-IT", "PT-BR", "TH-TH"), 285),
        "EN-US": 281,
    }
    assert len({item.data["subject"] for item in items}) == 57
    words = {"DE-DE": "Antwort", "ES-LA": "Respuesta", "HI-IN": "उत्तर", "EN-US": "Answer"}
    for protocol in ("thinking", "reference"):
        gold = _graded(
            items,
            task,
            protocol,
            lambda i: f"{words.get(i.category, 'Answer')}: {i.data['answer']}",
        )
        assert _mean(gold) == 1
        assert task.summary(gold)["languages"] == 8
        wrong = _graded(
            items, task, protocol, lambda i: f"Answer: {'BCDA'['ABCD'.index(i.data['answer'])]}"
        )
        assert _mean(wrong) == 0
        # Always saying B is worth the share of B.
        same = _mean(_graded(items, task, protocol, lambda i: "Answer: B"))
        assert same == sum(item.data["answer"] == "B" for item in items) / len(items)


def test_a_choice_said_in_words_is_found_where_it_is_one_choice(real):
    out, _ = real
    task = TASKS["mmmlu"]
    items = task.load(out / "mmmlu")
    graded = _graded(
        items,
        task,
        "thinking",
        lambda i: f"Answer: {i.data['choices']['ABCD'.index(i.data['answer'])]}",
    )
    assert _mean(graded) > 0.995
    # What is not found is missing: two choices with the same text. Nothing is read as another choice.
    assert all(g.verdict.extracted is None for g in graded if g.verdict.score == 0)


def test_gsm8k(real):
    out, counts = real
    task = TASKS["gsm8k"]
    items = task.load(out / "gsm8k")
    assert len(items) == counts["gsm8k"] == 8
    assert [item.data["answer"] for item in items] == ["6", "5", "39", "8", "9", "29", "33", "8"]
    gold = _graded(items, task, "reference", lambda i: f"so\n#### {i.data['answer']}")
    assert _mean(gold) == 1 and task.summary(gold) == {"flexible-extract": 1}
    assert _mean(_graded(items, task, "thinking", lambda i: f"Answer: {i.data['answer']}.00")) == 1
    assert _mean(_graded(items, task, "reference", lambda i: f"#### {i.data['answer']}1")) == 0


def test_bbh(real):
    out, counts = real
    task = TASKS["bbh"]
    items = task.load(out / "bbh")
    kinds = Counter(item.category for item in items)
    assert len(kinds) == 27 and set(kinds.values()) == {3}
    assert len(items) == counts["bbh"] == 81
    gold = _graded(items, task, "reference", lambda i: f"So the answer is {i.data['target']}.")
    assert _mean(gold) == 1 and task.summary(gold) == {"mean over kinds": 1}
    assert _mean(_graded(items, task, "thinking", lambda i: f"Answer: {i.data['target']}")) == 1
    assert _mean(_graded(items, task, "thinking", lambda i: "Answer: none of this")) == 0
    # Every prompt holds its kind's three worked examples, each with a step-by-step answer.
    for item in items:
        (message,) = task.prompt(item, 0, "reference")
        assert message["content"].count("\nA: Let's think step by step.\n") == 4
        assert message["content"].count("answer is ") >= 3


def test_the_files_are_sealed(real):
    out, _ = real
    path = out / "gsm8k/test.jsonl"
    line = (out / "gsm8k/SHA256SUMS").read_text().splitlines()[0]
    assert line == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  test.jsonl"
    changed = path.read_text() + path.read_text().splitlines()[0] + "\n"
    before = path.read_text()
    path.write_text(changed)
    with pytest.raises(UserError, match="SHA256SUMS says"):
        TASKS["gsm8k"].load(out / "gsm8k")
    path.write_text(before)


def test_a_package_of_another_kind(tmp_path):
    with pytest.raises(UserError, match=r"no lm_eval/tasks in .*; give a wheel of lm-eval"):
        extract(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="no wheel and no folder"):
        extract(tmp_path / "x.whl", tmp_path / "out")


def test_the_command_line_says_what_is_wrong(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "eval.packaged", str(tmp_path / "x.whl"), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
