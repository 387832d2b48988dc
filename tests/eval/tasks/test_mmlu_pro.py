"""MMLU-Pro: files, prompts, what differs between the protocols, and what the summary adds up."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from eval.task import Answer, Graded, Item, Verdict
from eval.tasks.mmlu_pro import TASK
from gemma4_jax.errors import UserError


def _row(
    number,
    *,
    category="physics",
    answer="B",
    index=1,
    options=("one", "two", "three", "N/A", "N/A"),
):
    return {
        "question_id": number,
        "question": f"How many are {number}?",
        "options": list(options),
        "answer": answer,
        "answer_index": index,
        "cot_content": f"A: Let's think step by step. It is {number}. The answer is (B).",
        "category": category,
        "src": "made up",
    }


def _parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.fixture
def folder(tmp_path):
    """The layout of the Hugging Face repository."""
    _parquet(tmp_path / "data/test-00000-of-00001.parquet", [_row(70), _row(71, category="law")])
    shots = [_row(i) for i in range(2)] + [_row(9, category="law")]
    _parquet(tmp_path / "data/validation-00000-of-00001.parquet", shots)
    return tmp_path


def test_load(folder):
    items = TASK.load(folder)
    assert [(item.id, item.category) for item in items] == [("70", "physics"), ("71", "law")]
    assert items[0].data["options"] == ["one", "two", "three"]
    assert [shot["question"] for shot in items[0].data["shots"]] == [
        "How many are 0?",
        "How many are 1?",
    ]
    json.dumps(items[0].data)
    alone = TASK.load(folder / "data/test-00000-of-00001.parquet")
    assert [item.id for item in alone] == ["70", "71"]


def test_the_reference_prompt(folder):
    (message,) = TASK.prompt(TASK.load(folder)[0], 0, "reference")
    assert message == {
        "role": "user",
        "content": (
            "The following are multiple choice questions (with answers) about physics. Think step by step and "
            'then output the answer in the format of "The answer is (X)" at the end.\n\n'
            "Question: How many are 0?\nOptions: A. one\nB. two\nC. three\n"
            "Answer: Let's think step by step. It is 0. The answer is (B).\n\n"
            "Question: How many are 1?\nOptions: A. one\nB. two\nC. three\n"
            "Answer: Let's think step by step. It is 1. The answer is (B).\n\n"
            "Question: How many are 70?\nOptions: A. one\nB. two\nC. three\n"
            "Answer: Let's think step by step.\n\n"
        ),
    }


def test_the_reference_needs_validation_rows(folder):
    (item, _) = TASK.load(folder / "data/test-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"no validation rows of category 'physics'.*give a folder"):
        TASK.prompt(item, 0, "reference")
    (message,) = TASK.prompt(item, 0, "thinking")
    assert "A) one\nB) two\nC) three\n" in message["content"]
    assert "N/A" not in message["content"]


def test_neither_stops_nor_cuts_a_thought():
    """The local script's stop "Question:" and 2048 tokens would."""
    settings = TASK.settings["thinking"]
    assert settings.stop == () and settings.max_tokens > 2048
    assert (settings.temperature, settings.top_p, settings.top_k) == (1.0, 0.95, 64)
    reference = TASK.settings["reference"]
    assert (reference.temperature, reference.max_tokens, reference.thinking) == (0.0, 4000, False)


@pytest.mark.parametrize(
    ("text", "thinking", "reference"),
    [
        ("Answer: B", 1, 1),
        # The first "answer is" counts there, the last mark here.
        ("I first thought the answer is A. Answer: B", 1, 0),
        ("The answer is B, if not for one thing. Answer: A", 0, 1),
        # A lone letter counts there only.
        ("It must be B", 0, 1),
        ("I can not say what I would do", 0, 0),
        # No answer at all: there a guess, and of three options the seed guesses the second.
        ("None of it makes sense.", 0, 1),
    ],
)
def test_the_protocols_differ(text, thinking, reference, folder):
    item = TASK.load(folder)[0]
    assert TASK.score(item, Answer(text=text)).score == thinking
    assert TASK.score(item, Answer(text=text, protocol="reference")).score == reference


def _item(tmp_path, options):
    _parquet(tmp_path / "test.parquet", [_row(1, options=options)])
    (item,) = TASK.load(tmp_path / "test.parquet")
    return item


def test_further_samples_shuffle_the_choices(tmp_path):
    item = _item(tmp_path, ("one", "two", "three", "four", "five"))
    letters = []
    for sample in range(12):
        (message,) = TASK.prompt(item, sample, "thinking")
        (line,) = (x for x in message["content"].splitlines() if x.endswith(") two"))
        letters.append(line[0])
        for letter in "ABCDE":
            verdict = TASK.score(item, Answer(text=f"Answer: {letter}", sample=sample))
            assert verdict.score == float(letter == line[0])
            assert (verdict.details["vote"] == 1) == (letter == line[0])
    assert letters[0] == "B" and len(set(letters)) > 2
    (first, other) = (TASK.prompt(item, sample, "thinking") for sample in (3, 3))
    assert first == other


@pytest.mark.parametrize(
    "option",
    [
        "None of the above",
        "Both A and C",
        "all of these",
        "I, II and III",
        "II only",
        "B, D",
        "neither",
    ],
)
def test_choices_that_speak_of_others_stay_where_they_are(option, tmp_path):
    item = _item(tmp_path, ("one", "two", "three", option))
    first = TASK.prompt(item, 0, "thinking")
    assert all(TASK.prompt(item, sample, "thinking") == first for sample in range(1, 9))


def test_a_guess_is_no_answer(folder):
    item = TASK.load(folder)[0]
    verdict = TASK.score(item, Answer(text="", protocol="reference"))
    assert verdict.extracted is None and verdict.details == {"guessed": True}
    assert "guesses B" in verdict.note


def test_summary():
    def graded(category, score, guessed=False):
        verdict = Verdict(score=score, extracted=None, details={"guessed": True} if guessed else {})
        return Graded(item=Item(id="1", data={}, category=category), sample=0, verdict=verdict)

    numbers = TASK.summary([graded("law", 1.0), graded("math", 0.0), graded("math", 1.0, True)])
    assert numbers == {
        "mean over categories": 0.75,
        "share guessed": pytest.approx(1 / 3),
        "points from guesses": pytest.approx(1 / 3),
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{**_row(1), "options": None, "category": None}],
            r":1: no 'options', 'category' \(columns here: 'question_id'",
        ),
        ([_row(1), _row(2), _row(1)], r":3: id '1' is already that of .*:1"),
        ([_row(1, answer="C")], "'answer' C and 'answer_index' 1 must name one of the 3 options"),
        (
            [_row(1, answer="D", index=3)],
            "'answer' D and 'answer_index' 3 must name one of the 3 options",
        ),
        ([_row(1, answer="ZZ")], "'answer' must be one of A, B"),
        ([{**_row(1), "options": "one, two"}], "'options' must be a list of strings"),
    ],
)
def test_bad_files(rows, message, tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=message):
        TASK.load(path)
