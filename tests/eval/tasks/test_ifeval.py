"""The 25 instructions against the reference's recorded verdicts, and files that are wrong."""

import json

import pytest

from eval.instructions import KINDS, follows, follows_loosely
from eval.language import capital_words, count_sentences, detect
from eval.task import Answer, Graded
from eval.tasks import ifeval
from gemma4_jax.errors import UserError
from tests.eval.tasks.answers_written import SENTENCES
from tests.eval.tasks.support import load_fixture

# Where own rules stand for langdetect and nltk: how many verdicts differ, strict and loose, of how many. In the
# fifth such kind, capital_word_frequency, none of these do.
OWN_RULES = {
    "language:response_language": (16, 11, 238),
    "length_constraints:number_sentences": (4, 3, 357),
    "change_case:english_capital": (3, 2, 119),
    "change_case:english_lowercase": (4, 6, 119),
}


def test_all_kinds_are_recorded():
    recorded = load_fixture("ifeval")
    assert {row["kind"] for row in recorded["rows"]} == set(KINDS) and len(KINDS) == 25
    assert len(recorded["texts"]) * len(recorded["rows"]) > 5000
    for row in recorded["rows"]:
        # Both answers are there.
        assert {"0", "1"} <= set(row["strict"]), row


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_are_the_references(kind):
    recorded = load_fixture("ifeval")
    different, count = {"strict": [], "loose": []}, 0
    for row in recorded["rows"]:
        if row["kind"] != kind:
            continue
        for text, strict, loose in zip(recorded["texts"], row["strict"], row["loose"], strict=True):
            count += 1
            if follows(kind, text, row["arguments"]) != (strict == "1"):
                different["strict"].append(text)
            if follows_loosely(kind, text, row["arguments"]) != (loose == "1"):
                different["loose"].append(text)
    expected = OWN_RULES.get(kind, (0, 0, count))
    assert (len(different["strict"]), len(different["loose"]), count) == expected, different


def test_languages_are_told():
    wrong = {
        language: detect(text) for language, text in SENTENCES.items() if detect(text) != language
    }
    assert wrong == {}
    assert detect(SENTENCES["en"].upper()) == "en"
    assert detect("12 + 3 = 15!") is None


def test_sentences():
    assert count_sentences("Dr. Smith left at 5 p.m. today. Why? He said: 3.5 is vs. fine.") == 3
    assert count_sentences("One... two. (Three!) Four") == 3
    assert count_sentences("") == 0
    assert capital_words("NASA and the WELL-KNOWN AND/OR I don't DON'T U.S. A1") == 8


def test_scores_and_summary():
    rows = {
        "a": (["punctuation:no_comma", "detectable_format:title"], "<<T>> no comma"),
        "b": (["punctuation:no_comma", "startend:quotation"], 'Sure, here:\n"quoted"'),
        "c": (["detectable_format:json_format"], ""),
    }
    graded = []
    for key, (kinds, text) in rows.items():
        item = ifeval.Item(
            id=key, data={"prompt": "", "kinds": kinds, "arguments": [{}] * len(kinds)}
        )
        graded.append(Graded(item=item, sample=0, verdict=ifeval.score(item, Answer(text=text))))
    assert [one.verdict.score for one in graded] == [1.0, 0.0, 0.0]
    assert graded[1].verdict.note == "not followed: punctuation:no_comma, startend:quotation"
    assert graded[1].verdict.details == {"strict": [False, False], "loose": [True, True]}
    assert graded[2].verdict.extracted is None
    got = ifeval.summary(graded)
    assert got["prompts, strict"] == pytest.approx(1 / 3)
    assert got["prompts, loose"] == pytest.approx(2 / 3)
    assert got["instructions, strict"] == pytest.approx(2 / 5)
    assert got["instructions, loose"] == pytest.approx(4 / 5)
    assert got["instructions, strict: punctuation"] == 0.5


def test_rows_as_the_hub_has_them(tmp_path):
    nulls = {"num_words": None, "relation": None, "keywords": None}
    given = [nulls | {"num_words": 5, "relation": "at least"}, nulls]
    kinds = ["length_constraints:number_words", "punctuation:no_comma"]
    row = {"key": 1000, "prompt": "Write.", "instruction_id_list": kinds, "kwargs": given}
    path = tmp_path / "ifeval.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (item,) = ifeval.TASK.load(path)
    assert item.id == "1000" and item.data["arguments"] == [
        {"num_words": 5, "relation": "at least"},
        {},
    ]
    assert ifeval.TASK.prompt(item, 0, "thinking") == [{"role": "user", "content": "Write."}]
    assert ifeval.TASK.score(item, Answer(text="one two three four five")).score == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruction_id_list": ["punctuation:no_coma"]}, "did you mean 'punctuation:no_comma'"),
        ({"instruction_id_list": ["startend:end_checker"]}, "needs 'end_phrase'"),
        ({"kwargs": []}, "needs one 'kwargs' per instruction, got 0 for 1"),
        ({"kwargs": ["x"]}, "'kwargs' must be objects"),
        ({"instruction_id_list": "no list"}, "'instruction_id_list' must be a list"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"num_words": 3, "relation": "more than"}],
            },
            "'relation' must be 'less than' or 'at least'",
        ),
        ({"prompt": None}, "no 'prompt'"),
    ],
)
def test_rows_that_are_wrong(tmp_path, changes, message):
    row = {"key": 1, "prompt": "P", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps(row | changes) + "\n")
    with pytest.raises(UserError, match=r"w\.jsonl:1: ") as caught:
        ifeval.TASK.load(path)
    assert message in str(caught.value)
