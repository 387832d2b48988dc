"""GSM8K: files, the five examples, and what differs between the protocols."""

import json

import pytest

from eval.task import Answer, Graded
from eval.tasks.gsm8k import TASK
from gemma4_jax.errors import UserError


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _row(number, answer):
    return {
        "question": f"How many are {number}?",
        "answer": f"It is <<1+1={answer}>>.\n#### {answer}",
    }


@pytest.fixture
def folder(tmp_path):
    _write(tmp_path / "main/test-00000-of-00001.jsonl", [_row(1, "1,250"), _row(2, "-7")])
    _write(tmp_path / "main/train-00000-of-00001.jsonl", [_row(10 + i, str(i)) for i in range(7)])
    _write(tmp_path / "socratic/test-00000-of-00001.jsonl", [_row(3, "3")])
    _write(tmp_path / "socratic/train-00000-of-00001.jsonl", [_row(4, "4")])
    return tmp_path


def test_load(folder):
    items = TASK.load(folder)
    assert [(item.id, item.data["answer"]) for item in items] == [("0", "1,250"), ("1", "-7")]
    assert len(items[0].data["shots"]) == 5
    assert TASK.load(folder / "main/test-00000-of-00001.jsonl")[0].data["shots"] == []


def test_prompts(folder):
    item = TASK.load(folder)[0]
    (message,) = TASK.prompt(item, 0, "reference")
    examples = "".join(
        f"Question: How many are {10 + i}?\nAnswer: It is <<1+1={i}>>.\n#### {i}\n\n"
        for i in range(5)
    )
    assert message["content"] == f"{examples}Question: How many are 1?\nAnswer:"
    (message,) = TASK.prompt(item, 0, "thinking")
    assert message["content"].startswith("How many are 1?\n\n")
    alone = TASK.load(folder / "main/test-00000-of-00001.jsonl")[0]
    with pytest.raises(UserError, match=r"no train rows: .* give a folder"):
        TASK.prompt(alone, 0, "reference")


@pytest.mark.parametrize(
    ("text", "thinking", "strict", "flexible"),
    [
        ("#### 1250", 1, 1, 1),
        ("#### 1,250.", 1, 1, 1),
        ("####1250", 1, 0, 1),
        ("#### $1250", 1, 0, 1),
        ("#### 1250.00", 1, 0, 0),
        ("#### 12\nNo:\n#### 1250", 1, 0, 1),
        ("#### 1250\n\n#### 12", 0, 1, 0),
        ("The answer is $1,250.", 1, 0, 1),
        ("\\boxed{1250}", 1, 0, 1),
        ("The answer is 1250. It took 3 steps.", 1, 0, 0),
        # An ellipsis is a number to flexible-extract.
        ("1250 ... done", 1, 0, 0),
        ("I do not know", 0, 0, 0),
    ],
)
def test_the_protocols_differ(text, thinking, strict, flexible, folder):
    item = TASK.load(folder)[0]
    assert TASK.score(item, Answer(text=text)).score == thinking
    verdict = TASK.score(item, Answer(text=text, protocol="reference"))
    assert (verdict.score, verdict.details["flexible"]) == (strict, flexible)


def test_summary(folder):
    items = TASK.load(folder)

    def graded(protocol):
        return [
            Graded(
                item=item,
                sample=0,
                verdict=TASK.score(item, Answer(text="1,250", protocol=protocol)),
            )
            for item in items
        ]

    assert TASK.summary(graded("reference")) == {"flexible-extract": 0.5}
    assert TASK.summary(graded("thinking")) == {}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "q", "target": "#### 3"},
            r"x\.jsonl:1: no 'answer' \(columns here: 'question', 'target'\)",
        ),
        ({"question": "q", "answer": "3"}, "'answer' must end in '#### ' and the number"),
        (
            {"question": "q", "answer": "#### many"},
            "'answer': the expected answer must be one number, got 'many'",
        ),
    ],
)
def test_bad_files(row, message, tmp_path):
    with pytest.raises(UserError, match=message):
        TASK.load(_write(tmp_path / "x.jsonl", [row]))
