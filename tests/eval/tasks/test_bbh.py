"""BIG-Bench Hard: the repository's files and Hugging Face's, and how every kind of answer is compared."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from eval.task import Answer, Graded, Item
from eval.tasks.bbh import TASK, extract, extract_reference
from gemma4_jax.errors import UserError

ROWS = [{"input": "Is it so?", "target": "Yes"}, {"input": "Or not?", "target": "No"}]
WORKED = (
    "Task description: warn.\n-----\nDecide it.\n\n"
    "Q: a?\nA: Let's think step by step.\nSo the answer is b.\n"
)


@pytest.fixture
def clone(tmp_path):
    """As the authors' repository lies on a disk."""
    for folder in ("bbh", "cot-prompts", "code-davinci-002-outputs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "bbh/navigate.json").write_text(json.dumps({"canary": "c", "examples": ROWS}))
    (tmp_path / "bbh/snarks.json").write_text(json.dumps({"canary": "c", "examples": ROWS[:1]}))
    (tmp_path / "cot-prompts/navigate.txt").write_text(WORKED)
    (tmp_path / "code-davinci-002-outputs/navigate.json").write_text("{}")
    return tmp_path


def test_load(clone):
    items = TASK.load(clone)
    assert [item.id for item in items] == ["navigate/0", "navigate/1", "snarks/0"]
    assert items[1].category == "navigate" and items[1].data["target"] == "No"
    for path in (clone / "bbh", clone / "bbh/navigate.json"):
        assert TASK.load(path)[0] == items[0]


def test_hugging_faces_folders(tmp_path):
    (tmp_path / "word_sorting").mkdir()
    path = tmp_path / "word_sorting/test-00000-of-00001.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert [item.id for item in TASK.load(tmp_path)] == ["word_sorting/0", "word_sorting/1"]


def test_prompts(clone):
    items = TASK.load(clone)
    assert TASK.prompt(items[1], 0, "reference")[0]["content"] == (
        "Decide it.\n\nQ: a?\nA: Let's think step by step.\nSo the answer is b.\n\n"
        "Q: Or not?\nA: Let's think step by step.\n"
    )
    with pytest.raises(UserError, match=r"no worked examples of 'snarks'.*cot-prompts/snarks\.txt"):
        TASK.prompt(items[2], 0, "reference")
    assert TASK.prompt(items[2], 0, "thinking")[0]["content"].startswith("Is it so?\n\n")


@pytest.mark.parametrize(
    ("target", "text", "thinking", "reference"),
    [
        ("(A)", "So the answer is (A).", 1, 1),
        ("(A)", "So the answer is (A)", 1, 0),  # the last character goes, whatever it is
        ("(A)", "Answer: A", 1, 0),
        ("(A)", "**Answer:** (A) apples", 1, 0),
        ("(A)", "Answer: $\\boxed{\\text{(A)}}$", 1, 0),
        ("(A)", "\\boxed{A}", 1, 0),
        ("(A)", "Answer: Apples", 0, 0),
        ("(A)", "the answer is (B). No, the answer is (A).", 1, 0),
        ("(A)", "the answer is (B).\nNo, the answer is (A).", 1, 0),
        ("(A)", "the answer is (A).\nNo, the answer is (B).", 0, 1),
        ("True", "Answer: true", 1, 0),
        ("True", "the answer is **True**.", 1, 0),
        ("True", "The answer is True.", 1, 0),
        ("no", "the answer is no.", 1, 1),
        ("-128", "Answer: −128", 1, 0),
        ("1024", "Answer: 1,024", 1, 0),
        ("24", "Answer: 24.", 1, 0),
        ("24", "Answer: 240", 0, 0),
        ("] ) >", "Answer: ])>", 1, 0),
        ("] ) >", "the answer is ] ) >.", 1, 1),
        ("] ) >", "Answer: ] >", 0, 0),
        ("apple fig plum", "Answer: apple, fig, plum", 1, 0),
        ("apple fig plum", "the answer is apple fig plum.", 1, 1),
        ("apple fig plum", "Answer: fig apple plum", 0, 0),
        ("valid", "It is valid, I think", 0, 0),
        ("valid", "Answer: invalid", 0, 0),
    ],
)
def test_answers(target, text, thinking, reference):
    item = Item(id="x/0", data={"target": target})
    assert TASK.score(item, Answer(text=text)).score == thinking
    assert TASK.score(item, Answer(text=text, protocol="reference")).score == reference


def test_no_answer_and_an_empty_one():
    assert extract("It is so.") is None
    assert extract("Answer:") is None
    assert extract_reference("The answer is (A).") is None
    assert extract_reference("the answer is x") == ""


def test_stops_are_the_references_alone():
    assert TASK.settings["reference"].stop == ("</s>", "Q", "\n\n")
    assert TASK.settings["thinking"].stop == ()


def test_mean_over_kinds(clone):
    graded = [
        Graded(item=item, sample=0, verdict=TASK.score(item, Answer(text="Answer: yes")))
        for item in TASK.load(clone)
    ]
    assert TASK.summary(graded) == {"mean over kinds": 0.75}


def test_bad_files(tmp_path):
    path = tmp_path / "navigate.jsonl"
    path.write_text('{"input": "x", "answer": "y"}\n')
    with pytest.raises(
        UserError, match=r"navigate\.jsonl:1: no 'target' \(columns here: 'input', 'answer'\)"
    ):
        TASK.load(path)
