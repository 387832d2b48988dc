"""What a run of rounds reads and keeps: prompts that are refused in one line, lines that outlive a kill."""

import json

import pytest

from configs.verifiable import VerifyConfig
from gemma4_jax.errors import UserError
from train.verifiable.files import Lines
from train.verifiable.prompts import read_prompts

GOOD = {"prompt": "2 + 3?", "verifier": {"kind": "number", "answer": 5}}


def test_prompts_are_read_with_their_verifiers(rows_file):
    file = read_prompts(
        rows_file(
            GOOD,
            {
                "id": "b",
                "messages": [{"role": "user", "content": "hi"}],
                "thinking": True,
                "verifier": {"kind": "number", "answer": "1/2"},
            },
            name="sums.jsonl",
        ),
        VerifyConfig(),
    )
    assert (file.name, [p.id for p in file.prompts]) == ("sums", ["1", "b"])
    first, second = file.prompts
    assert first.messages == [{"role": "user", "content": "2 + 3?"}]
    assert (first.thinking, second.thinking) == (None, True)
    assert first.verify("that makes 5", "").right and not first.verify("6", "").right
    assert second.verify("0.5", "").right


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**GOOD, "messages": []}, "either messages or prompt"),
        ({"verifier": GOOD["verifier"]}, "either messages or prompt (keys here: verifier)"),
        ({**GOOD, "prompt": 7}, "prompt must be a list of messages, got 7"),
        ({**GOOD, "prompt": [{"role": "user"}]}, "content"),
        (
            {**GOOD, "prompt": [{"role": "assistant", "content": "5"}]},
            "must end with what is to be answered",
        ),
        ({"prompt": "2 + 3?"}, "no verifier (keys here: prompt)"),
        ({**GOOD, "verifier": {"kind": "numbr"}}, "did you mean"),
        ({**GOOD, "verifier": "number"}, "verifier must be an object"),
        ({**GOOD, "verifier": {"kind": "number"}}, "verifier.answer is missing"),
        ({**GOOD, "verifier": {"kind": "number", "answer": 5, "anser": 5}}, "'anser'"),
        ({**GOOD, "verifier": {"kind": "json_schema", "schema": {"type": 5}}}, "not a JSON schema"),
        ({**GOOD, "verifier": {"kind": "tool_calls"}}, "needs the row's tools"),
        ({**GOOD, "verifier": {"kind": "python", "file": "no.py"}}, "cannot read the verifier"),
        ({**GOOD, "verifier": {"kind": "number", "answer": "five"}}, "must be one number"),
        ({**GOOD, "thinking": "yes"}, "thinking must be true or false, got 'yes'"),
        ({**GOOD, "tools": {}}, "tools must be a list of tools"),
        ({**GOOD, "id": ["a"]}, "id must be a text or a whole number"),
        ({**GOOD, "id": 1}, "id '1' is that of line 1; ids must differ"),
        ("[1, 2", "not JSON"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_its_line(rows_file, row, words):
    with pytest.raises(UserError) as error:
        read_prompts(rows_file(GOOD, row), VerifyConfig())
    assert "line 2: " in str(error.value) and words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_without_prompts_and_one_that_is_not_there(rows_file, tmp_path):
    with pytest.raises(UserError, match="has no prompts"):
        read_prompts(rows_file(""), VerifyConfig())
    with pytest.raises(UserError, match="cannot read the prompts"):
        read_prompts(tmp_path / "none.jsonl", VerifyConfig())


def test_lines_go_on_after_a_torn_one(tmp_path):
    file, note = tmp_path / "lines.jsonl", {"model": "a"}
    with Lines(file, note) as lines:
        for i in range(3):
            lines.put({"prompt": "p", "sample": i})
    with file.open("a") as torn:
        torn.write('{"prompt": "p", "sam')
    with Lines(file, note) as lines:
        assert list(lines.rows) == [("p", 0), ("p", 1), ("p", 2)]
        lines.put({"prompt": "p", "sample": 3})
    assert [json.loads(line)["sample"] for line in file.read_text().splitlines()] == [0, 1, 2, 3]


def test_lines_of_other_settings_are_refused(tmp_path):
    file = tmp_path / "lines.jsonl"
    with Lines(file, {"model": "a", "temperature": 1.0}) as lines:
        lines.put({"prompt": "p", "sample": 0})
    with pytest.raises(UserError, match=r"made with temperature 1.0, not 0.5"):
        Lines(file, {"model": "a", "temperature": 0.5})
