"""AIME: every schema in use, the years, boxes, and votes."""

import json

import pytest

from eval.task import Answer, Graded, Item
from eval.tasks import TASKS
from eval.tasks.aime import extract, extract_reference, summary
from gemma4_jax.errors import UserError


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        ("aime_2026", {"problem_idx": 3, "problem": "p", "answer": 70}, "3"),
        ("aime_2025", {"id": "7", "problem": "p", "answer": "070"}, "7"),
        ("aime_2024", {"id": 60, "problem": "p", "solution": "So \\boxed{070}.", "url": "u"}, "60"),
        (
            "aime_2024",
            {
                "id": 60,
                "problem": "p",
                "solution": "s",
                "answer": "070",
                "url": "u",
                "year": "2024",
            },
            "60",
        ),
        (
            "aime_2024",
            {"ID": "2024-II-4", "Problem": "p", "Solution": "s", "Answer": 70},
            "2024-II-4",
        ),
        ("aime_2025", {"question": "p", "answer": "70"}, "1"),
    ],
    ids=["MathArena", "math-ai", "math-ai 24", "HuggingFaceH4", "Maxwell-Jia", "opencompass"],
)
def test_schemas(task, row, expected, tmp_path):
    (item,) = TASKS[task].load(_write(tmp_path / "x.jsonl", [row]))
    assert item == Item(id=expected, data={"problem": "p", "answer": 70})


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"id": 1, "problem": "p"}],
            r"x\.jsonl:1: no answer, in none of the columns 'answer', 'Answer' \(columns here",
        ),
        (
            [{"id": 1, "answer": 3}],
            "no problem, in none of the columns 'problem', 'Problem', 'question'",
        ),
        (
            [{"id": 1, "problem": "p", "answer": 1000}],
            "the answer is 1000; answers of the AIME are from 0 to 999",
        ),
        (
            [{"id": 1, "problem": "p", "answer": "1/2"}],
            "'answer' must be a whole number, got '1/2'",
        ),
        (
            [{"id": 1, "problem": "p", "answer": 3, "year": 2024}],
            "of 2024, the task of 2026; take aime_2024",
        ),
        (
            [{"ID": "2024-I-1", "Problem": "p", "Answer": 3}],
            "of 2024, the task of 2026; take aime_2024",
        ),
        ([{"id": 1, "problem": "p", "answer": 3}] * 2, "id '1' is already that of"),
    ],
)
def test_bad_files(rows, message, tmp_path):
    with pytest.raises(UserError, match=message):
        TASKS["aime_2026"].load(_write(tmp_path / "x.jsonl", rows))


ITEM = Item(id="1", data={"problem": "How many?", "answer": 70})


def test_prompts():
    (message,) = TASKS["aime_2026"].prompt(ITEM, 0, "reference")
    assert message["content"] == (
        "Put your final answer within \\boxed{}.\nThe answer is an integer between 0 and 999 inclusive."
        "\n\nHow many?"
    )
    (message,) = TASKS["aime_2026"].prompt(ITEM, 0, "thinking")
    assert message["content"].startswith("How many?\n\n") and "\\boxed{}" in message["content"]


@pytest.mark.parametrize(
    ("text", "thinking", "reference"),
    [
        ("\\boxed{70}", "70", "70"),
        ("\\boxed{070}", "70", "70"),
        ("$$\n\\boxed{70}\n$$", "70", "70"),
        # The last box; the two are not merged.
        ("first \\boxed{12} then \\boxed{70}", "70", "70"),
        ("\\boxed{\\boxed{70}}", "70", "70"),
        ("\\boxed{60^\\circ}", "60", "60"),
        ("\\boxed{1,000}", "1000", "1000"),
        ("\\boxed{3.0}", "3", "3"),
        ("\\boxed{2^4}", "16", "16"),
        ("\\boxed{m + n = 25 + 45 = 70}", "70", "70"),
        ("\\boxed{70 \\text{ ways}}", "70", "70"),
        # There what is set as text is gone, and with it the number.
        ("\\boxed{\\text{70}}", "70", "\\text{70}"),
        ("\\boxed{\\frac{140}{2}}", "70", "70"),
        # A pair is no number, except where commas between digits vanish.
        ("\\boxed{1,2}", "1,2", "12"),
        # Without a box: the number marked as the answer, against the last one.
        ("The answer is 70.", "70", "70"),
        ("The answer is 70. That took 3 steps.", "70", "3"),
        ("70", None, "70"),
        ("The answer is -5.", "-5", "5"),
        # A box that is no number does not hide one that is; there it does.
        ("\\boxed{70}, or \\boxed{x}", "70", "x"),
        ("boxed{70}", None, "70"),
        ("\\boxed {70}", "70", "70"),
        ("\\boxed{70", None, "70"),
        ("", None, None),
    ],
)
def test_extraction(text, thinking, reference):
    assert extract(text) == thinking
    assert extract_reference(text) == reference


def test_zero_is_never_right_for_the_reference():
    item = Item(id="1", data={"problem": "p", "answer": 0})
    task = TASKS["aime_2024"]
    assert task.score(item, Answer(text="\\boxed{0}")).score == 1
    assert task.score(item, Answer(text="\\boxed{0}", protocol="reference")).score == 0


def test_votes():
    """None is left out, ties give the mean of the tied."""
    task = TASKS["aime_2026"]

    def graded(item, texts):
        return [
            Graded(item=item, sample=i, verdict=task.score(item, Answer(text=text, sample=i)))
            for i, text in enumerate(texts)
        ]

    other = Item(id="2", data={"problem": "p", "answer": 5})
    third = Item(id="3", data={"problem": "p", "answer": 5})
    rows = [
        *graded(ITEM, ["\\boxed{70}", "?", "?", "\\boxed{3}", "\\boxed{70}"]),  # 70 against 3: 1
        *graded(other, ["\\boxed{5}", "\\boxed{6}", "\\boxed{6}", "\\boxed{5}", "?"]),  # a tie: 1/2
        *graded(third, ["?"] * 5),  # nobody votes: 0
    ]
    assert summary(rows) == {"majority of 5": pytest.approx(0.5)}
    assert summary(graded(ITEM, ["\\boxed{70}"])) == {}


def test_published():
    assert {p.model: p.value for p in TASKS["aime_2026"].published} == {
        **{"31b": 89.2, "26b-a4b": 88.3, "12b": 77.5, "e4b": 42.5, "e2b": 37.5}
    }
    assert not TASKS["aime_2024"].published and not TASKS["aime_2025"].published
    assert TASKS["aime_2026"].settings["reference"].samples == 4
