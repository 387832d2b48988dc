"""GPQA Diamond: the published file, shuffled choices, and what differs between the protocols."""

import csv
import hashlib

import pytest

from eval.task import Answer
from eval.tasks import gpqa_diamond
from eval.tasks.gpqa_diamond import TASK, order, right_letter
from gemma4_jax.errors import UserError

COLUMNS = (
    *("Record ID", "High-level domain", "Subdomain", "Question", "Correct Answer"),
    *("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3", "Explanation"),
)
ROWS = [
    (
        "rec1",
        "Physics",
        "Optics",
        "Which way?\nSay, with 2 lines",
        "left\n",
        "right",
        "up",
        "down",
        "x",
    ),
    ("rec2", "Biology", "Genetics", 'Which "one"?', "a, b", "c", "d", "e", "y"),
]


def _write(path, rows=ROWS, columns=COLUMNS):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def test_load(tmp_path):
    items = TASK.load(_write(tmp_path / "mine.csv"))
    assert [(item.id, item.category) for item in items] == [
        ("rec1", "Physics"),
        ("rec2", "Biology"),
    ]
    assert items[1].data == {"question": 'Which "one"?', "choices": ["a, b", "c", "d", "e"]}


def test_the_published_file_is_checked(tmp_path, monkeypatch):
    path = _write(tmp_path / "gpqa_diamond.csv")
    with pytest.raises(
        UserError, match=r"its sha256 is .*the published file's 41d1213c.*rename it"
    ):
        TASK.load(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(gpqa_diamond.SHA256, "gpqa_diamond.csv", found)
    # In a folder of all of GPQA's sets, only this one is read.
    _write(tmp_path / "gpqa_main.csv", [("rec3", *ROWS[0][1:])])
    assert [item.id for item in TASK.load(tmp_path)] == ["rec1", "rec2"]


@pytest.mark.parametrize("protocol", ["thinking", "reference"])
def test_prompt_and_score_see_the_same_order(protocol, tmp_path):
    """Gold answers score, wrong ones do not, whatever the order of the sample."""
    for item in TASK.load(_write(tmp_path / "mine.csv")):
        letters = set()
        for sample in range(12):
            (message,) = TASK.prompt(item, sample, protocol)
            lines = message["content"].splitlines()
            gold = item.data["choices"][0].strip()
            (line,) = (line for line in lines if line.rstrip()[1:] == f") {gold}")
            letters.add(line[0])
            for letter in "ABCD":
                answer = Answer(text=f"Answer: {letter}", sample=sample, protocol=protocol)
                assert TASK.score(item, answer).score == float(letter == line[0])
        assert letters == set("ABCD")


def test_votes_are_for_choices_not_for_letters(tmp_path):
    (item, _) = TASK.load(_write(tmp_path / "mine.csv"))
    for sample in range(12):
        right = gpqa_diamond.right_letter(item, sample)
        for letter in "ABCD":
            verdict = TASK.score(item, Answer(text=f"Answer: {letter}", sample=sample))
            assert (verdict.details["vote"] == 0) == (letter == right)
    assert "vote" not in TASK.score(item, Answer(text="Who knows.")).details


def test_the_reference_prompt(tmp_path):
    item = TASK.load(_write(tmp_path / "mine.csv"))[1]
    a, b, c, d = order(item, 3)
    assert TASK.prompt(item, 3, "reference")[0]["content"] == (
        "Answer the following multiple choice question. The last line of your response should be of the "
        "following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step by "
        f'step before answering.\n\nWhich "one"?\n\nA) {a}\nB) {b}\nC) {c}\nD) {d}'
    )


@pytest.mark.parametrize(
    ("text", "thinking", "reference"),
    [
        ("Answer: {L}", 1, 1),
        ("Answer: {M}. No: Answer: {L}", 1, 0),
        ("answer: {l}", 1, 0),
        ("**Answer:** {L}", 1, 0),
        ("\\boxed{{{L}}}", 1, 0),
        ("It is {L}.", 0, 0),
        ("", 0, 0),
    ],
)
def test_the_protocols_differ(text, thinking, reference, tmp_path):
    item = TASK.load(_write(tmp_path / "mine.csv"))[1]
    right = right_letter(item, 5)
    other = next(letter for letter in "ABCD" if letter != right)
    text = text.format(L=right, l=right.lower(), M=other)
    assert TASK.score(item, Answer(text=text, sample=5)).score == thinking
    assert TASK.score(item, Answer(text=text, sample=5, protocol="reference")).score == reference


def test_because_reads_as_b():
    assert gpqa_diamond.extract_reference("Answer: Because of its spin.") == "B"
    assert gpqa_diamond.extract("Answer: Because of its spin.", ["w", "x", "y", "z"]) is None


def test_of_two_equal_choices_the_first_is_right(tmp_path):
    row = ("rec1", "Physics", "Optics", "?", "same", "same", "x", "y", "")
    (item,) = TASK.load(_write(tmp_path / "mine.csv", [row]))
    for sample in range(8):
        assert right_letter(item, sample) == "ABCD"[order(item, sample).index("same")]


def test_samples():
    assert TASK.settings["thinking"].samples == 4
    assert TASK.settings["reference"].samples == 10
    assert {p.model: p.value for p in TASK.published if p.source.startswith("Gemma")} == {
        **{"31b": 84.3, "26b-a4b": 82.3, "12b": 78.8, "e4b": 58.6, "e2b": 43.4}
    }


def test_bad_files(tmp_path):
    columns = [column for column in COLUMNS if column != "Record ID"]
    path = _write(tmp_path / "a.csv", [row[1:] for row in ROWS], columns)
    with pytest.raises(
        UserError, match=r"a\.csv:2: no 'Record ID' \(columns here: 'High-level domain'"
    ):
        TASK.load(path)
    with pytest.raises(UserError, match=r"b\.csv:5: id 'rec1' is already that of .*b\.csv:2"):
        TASK.load(_write(tmp_path / "b.csv", [ROWS[0], ROWS[0]]))
