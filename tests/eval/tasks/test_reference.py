"""Extraction and scoring of the reference protocols equal what the reference implementations said.

tests/fixtures/eval/README.md says how their verdicts were recorded. The replies are made up (responses.py).
"""

import gzip
import json
from collections import Counter
from pathlib import Path

from eval.task import Answer, Item
from eval.tasks import aime, bbh, gpqa_diamond, gsm8k, mmlu_pro, mmmlu
from tests.eval.tasks import responses

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "eval"
MADE = {
    "mmlu_pro": responses.choices(320, "ABCDEFGHIJ", 1),
    "gpqa_diamond": responses.choices(320, "ABCD", 2),
    "mmmlu": responses.languages(400, 3) + responses.choices(100, "ABCD", 4),
    "aime": responses.boxed(420, 6),
    "gsm8k": responses.hashed(320, 7),
    "bbh": responses.puzzles(320, 8),
}


def _rows(task):
    recorded = json.loads(gzip.decompress((FIXTURES / f"{task}.json.gz").read_bytes()))
    rows = recorded["rows"]
    assert [(r["text"], r["right"]) for r in rows] == [(r["text"], r["right"]) for r in MADE[task]]
    assert len({row["text"] for row in rows}) >= 200
    # Neither all right nor all wrong, and some without an answer: the comparison can fail.
    assert min(Counter(row["score"] for row in rows).values()) >= 30
    assert sum(row["extracted"] is None for row in rows) >= 5
    return rows


def _differences(rows, judge):
    """Replies that are judged otherwise than recorded."""
    different = []
    for row in rows:
        verdict = judge(row)
        if (verdict.extracted, verdict.score) != (row["extracted"], row["score"]):
            different.append((row, verdict))
    return different


def _answer(row):
    return Answer(text=row["text"], protocol="reference")


def test_mmlu_pro():
    def judge(row):
        data = {
            "options": ["x"] * row["options"],
            "answer": row["right"],
            "answer_index": "ABCDEFGHIJ".index(row["right"]),
        }
        return mmlu_pro.score(Item(id="1", data=data), _answer(row))

    rows = _rows("mmlu_pro")
    assert _differences(rows, judge) == []
    # Guesses that the seed makes right are among them.
    assert any(row["extracted"] is None and row["score"] for row in rows)


def test_gpqa_diamond():
    def judge(row):
        # The sample whose shuffling puts the right choice where this reply's key says it is.
        item = Item(id="rec1", data={"question": "?", "choices": ["w", "x", "y", "z"]})
        sample = next(s for s in range(99) if gpqa_diamond.right_letter(item, s) == row["right"])
        answer = Answer(text=row["text"], protocol="reference", sample=sample)
        return gpqa_diamond.score(item, answer)

    assert _differences(_rows("gpqa_diamond"), judge) == []


def test_mmmlu():
    def judge(row):
        data = {"choices": ["w", "x", "y", "z"], "answer": row["right"]}
        return mmmlu.score(Item(id="DE-DE/1", data=data), _answer(row))

    assert _differences(_rows("mmmlu"), judge) == []


def test_gsm8k():
    def judge(row):
        return gsm8k.score(Item(id="1", data={"answer": row["right"]}), _answer(row))

    rows = _rows("gsm8k")
    assert _differences(rows, judge) == []
    for row in rows:
        details = judge(row).details
        assert details["flexible_extracted"] == row["flexible_extracted"], row
        assert details["flexible"] == row["flexible_score"], row


def test_bbh():
    def judge(row):
        return bbh.score(Item(id="x/1", data={"target": row["right"]}), _answer(row))

    assert _differences(_rows("bbh"), judge) == []


def test_aime():
    def judge(row):
        return aime.score(Item(id="1", data={"answer": int(row["right"])}), _answer(row))

    rows = _rows("aime")
    for row in rows:
        verdict = judge(row)
        assert verdict.score == row["score"], (row, verdict)
        # Where the reference has a whole number, so have we; what else it has, sympy spells its own way.
        if row["extracted"] is None or row["extracted"].lstrip("-").isdigit():
            assert verdict.extracted == row["extracted"], (row, verdict)
