"""MMMLU: files of languages, native words and letters, rows that repeat others, means."""

import csv

import pytest

from eval.task import Answer, Graded, Item, Verdict
from eval.tasks.mmmlu import LANGUAGES, TASK, extract, extract_reference
from gemma4_jax.errors import UserError

COLUMNS = ("", "Question", "A", "B", "C", "D", "Answer", "Subject")
OPTIONS = ["vier", "5", "sechs", "beide, A und C"]


def _row(number, question="Wie viele?", answer="B", options=OPTIONS):
    return (number, question, *options, answer, "anatomy")


def _write(path, rows, columns=COLUMNS):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    return path


def test_load(tmp_path):
    _write(tmp_path / "test/mmlu_DE-DE.csv", [_row(0), _row(1, "Und jetzt?", "D")])
    _write(tmp_path / "test/mmlu_AR-XY.csv", [_row(0, "كم؟")])
    items = TASK.load(tmp_path)
    assert [item.id for item in items] == ["AR-XY/0", "DE-DE/0", "DE-DE/1"]
    assert [item.category for item in items] == ["AR-XY", "DE-DE", "DE-DE"]
    assert items[2].data == {
        "question": "Und jetzt?",
        "choices": OPTIONS,
        "answer": "D",
        "subject": "anatomy",
        "repeats": None,
        "conflicts": False,
    }


def test_the_language_may_be_the_folders(tmp_path):
    path = _write(tmp_path / "SW_KE/test-00000-of-00001.csv", [_row(0)])
    assert TASK.load(path)[0].category == "SW-KE"
    with pytest.raises(UserError, match=r"name must hold the language, as in mmlu_DE-DE\.csv"):
        TASK.load(_write(tmp_path / "mine/test.csv", [_row(0)]))


def test_prompts(tmp_path):
    (item,) = TASK.load(_write(tmp_path / "mmlu_DE-DE.csv", [_row(0)]))
    for sample in (0, 5):  # the choices refer to each other: no shuffling
        (message,) = TASK.prompt(item, sample, "reference")
        assert message["content"] == (
            "Answer the following multiple choice question. The last line of your response should be of the "
            "following format: 'Answer: $LETTER' (without quotes) where LETTER is one of ABCD. Think step "
            "by step before answering.\n\nWie viele?\n\nA) vier\nB) 5\nC) sechs\nD) beide, A und C"
        )
        (message,) = TASK.prompt(item, sample, "thinking")
        assert "\nB) 5\nC) sechs\n" in message["content"]


# One reply a language of the fourteen, as its speakers would write it, and the letter it names.
@pytest.mark.parametrize(
    ("language", "text", "letter"),
    [
        ("AR-XY", "الإجابة: ج", "C"),
        ("AR-XY", "الإجابة الصحيحة هي: ب", "B"),
        ("BN-BD", "উত্তর: ঘ", "D"),
        ("DE-DE", "**Antwort:** C", "C"),
        ("ES-LA", "Respuesta: (A)", "A"),
        ("FR-FR", "Réponse : B", "B"),
        ("HI-IN", "उत्तर: ग", "C"),
        ("ID-ID", "Jawaban: D", "D"),
        ("IT-IT", "Risposta: **A**", "A"),
        ("JA-JP", "答え：Ｃ", "C"),
        ("JA-JP", "正解: イ", "B"),
        ("KO-KR", "정답: 다", "C"),
        ("PT-BR", "Resposta: $\\boxed{D}$", "D"),
        ("SW-KE", "Jibu: B.", "B"),
        ("YO-NG", "Ìdáhùn: A", "A"),
        ("ZH-CN", "答案：D", "D"),
    ],
)
def test_every_language(language, text, letter):
    assert language in LANGUAGES
    assert extract(f"A.\n{text}", OPTIONS) == letter


def test_every_language_is_tried():
    assert len(LANGUAGES) == 14


@pytest.mark.parametrize("digits", ["5", "٥", "৫", "५", "５"])
def test_native_digits_name_the_choice_that_says_so(digits):
    assert extract(f"Answer: {digits}", OPTIONS) == "B"
    assert extract(f"Answer: {digits}", ["٥" if o == "5" else o for o in OPTIONS]) == "B"
    # Not the second choice for a 2: two is no choice here.
    assert extract("Answer: 2", OPTIONS) is None


@pytest.mark.parametrize(
    ("text", "thinking", "reference"),
    [
        ("Answer: B", "B", "B"),
        ("Answer: A\nAnswer: B", "B", "A"),
        # The order of words, not of places: "Answer" comes before "Antwort" in its list.
        ("Antwort: A\nAnswer: B", "B", "B"),
        ("Answer: B\nAntwort: A", "A", "B"),
        ("answer: b.", "B", "b"),
        ("\\boxed{B}", "B", None),
        ("الإجابة : ب", "B", None),
        ("الإجابة: ت", None, "ت"),
        ("উত্তর: খ", "B", None),
        ("উত্তর: ব", "B", "B"),
        ("정답: 나", "B", None),
        ("**Antwort:** $\\boxed{B}$", "B", "B"),
        ("It is B.", None, None),
    ],
)
def test_the_protocols_differ(text, thinking, reference):
    assert extract(text, OPTIONS) == thinking
    assert extract_reference(text) == reference


def test_lower_case_is_wrong_for_the_reference_alone(tmp_path):
    (item,) = TASK.load(_write(tmp_path / "mmlu_DE-DE.csv", [_row(0)]))
    assert TASK.score(item, Answer(text="answer: b")).score == 1
    assert TASK.score(item, Answer(text="answer: b", protocol="reference")).score == 0


def test_rows_that_repeat_others_are_kept_and_counted(tmp_path):
    rows = [
        _row(0),
        _row(1, "Wann?"),
        _row(2),
        _row(3, answer="C"),
        _row(4, options=["5", *OPTIONS[1:]]),
    ]
    items = TASK.load(_write(tmp_path / "mmlu_FR-FR.csv", rows))
    assert [item.data["repeats"] for item in items] == [None, None, 0, 0, None]
    assert [item.data["conflicts"] for item in items] == [False, False, False, True, False]
    graded = [
        Graded(item=item, sample=sample, verdict=Verdict(score=1.0, extracted="B"))
        for item in items
        for sample in range(2)
    ]
    numbers = TASK.summary(graded)
    assert numbers["rows that repeat one before"] == 2
    assert numbers["of those, with another key"] == 1


def test_mean_over_languages():
    def graded(language, score):
        item = Item(
            id=f"{language}/{score}",
            data={"repeats": None, "conflicts": False},
            category=language,
        )
        return Graded(item=item, sample=0, verdict=Verdict(score=score, extracted="A"))

    numbers = TASK.summary([graded("DE-DE", 1.0), graded("FR-FR", 0.0), graded("FR-FR", 0.5)])
    assert numbers["mean over languages"] == pytest.approx(0.625)
    assert numbers["languages"] == 2
    assert (numbers["DE-DE"], numbers["FR-FR"]) == (1.0, 0.25)


def test_bad_files(tmp_path):
    columns = ("", "Question", "A", "B", "C", "option_d", "Answer", "topic")
    with pytest.raises(
        UserError, match=r"mmlu_DE-DE\.csv:2: no 'D', 'Subject' \(columns here: '', 'Question', 'A'"
    ):
        TASK.load(_write(tmp_path / "1/mmlu_DE-DE.csv", [_row(0)], columns))
    with pytest.raises(UserError, match="'Answer' must be one of A, B, C, D, got 'E'"):
        TASK.load(_write(tmp_path / "2/mmlu_DE-DE.csv", [_row(0, answer="E")]))
    # The same language from the repository's CSV and from its parquet folder.
    _write(tmp_path / "3/mmlu_DE-DE.csv", [_row(0)])
    _write(tmp_path / "3/DE_DE/test.csv", [_row(0)])
    with pytest.raises(
        UserError, match=r"mmlu_DE-DE\.csv:2: DE-DE stands in .*DE_DE too; give one"
    ):
        TASK.load(tmp_path / "3")
