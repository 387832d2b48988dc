"""`gemma4 data inspect`: what is shown of rows, of lengths, and of what is wrong."""

import io
import json
import re
import sys

import pytest

from gemma4_jax import cli

USER = {"role": "user", "content": "What is one plus one?"}
TWO = {"role": "assistant", "content": "Two.", "reasoning": "1 + 1"}
SIX = {"role": "assistant", "content": "Six."}


@pytest.fixture
def data(tmp_path):
    """data(*rows) -> path of a file of them; a string stands as it is."""

    def write(*rows):
        file = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        file.write_text("".join(f"{line}\n" for line in lines))
        return str(file)

    return write


def test_rows_are_written_out_with_their_targets(run, data):
    file = data({"messages": [USER, TWO, USER, TWO]}, {"text": "One.\x1b[31m"})
    result = run("data", "inspect", file)
    assert (result.code, result.err) == (0, "")
    written = result.out[: result.out.index("2 of 2 rows")]
    blocks = re.split(r"^--- ", written, flags=re.MULTILINE)[1:]
    assert [block.partition(",")[0] for block in blocks] == [
        f"{file}:1: messages",
        f"{file}:1: messages",
        f"{file}:2: text",
    ]
    assert "example 1 of 2" in blocks[0] and "example 2 of 2" in blocks[1]
    thought = "[[<|channel>thought\n1 + 1\n<channel|>Two.<turn|>]]\n"
    prompt = "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nWhat is one plus one?<turn|>\n<|turn>model\n"
    assert blocks[0].partition("\n")[2].strip() == (prompt + thought).strip()
    assert blocks[1].count("[[") == 1 and "\nTwo.<turn|>\n" in blocks[1]
    assert "<bos>[[One.\u241b[31m<eos>]]" in blocks[2]
    assert "2 of 2 rows can be read as sft: messages 1, text 1\n3 examples, " in result.out


def test_pairs_are_recognised(run, data):
    row = {"prompt": [USER], "chosen": [SIX], "rejected": [{**SIX, "content": "Ten."}]}
    out = run("data", "inspect", data("{", row), "--family", "small").out
    assert "preference, chosen, " in out and "[[Six.<turn|>]]" in out
    assert "preference, rejected, " in out and "[[Ten.<turn|>]]" in out
    assert "1 of 2 rows can be read as dpo: preference 1\n1 pairs, " in out
    assert ":1: not JSON" in out


def test_lengths_and_what_is_too_long(run, data):
    rows = [{"input_ids": [2] + [7] * (n - 1)} for n in (2, 3, 10, 10, 30)]
    late = {"input_ids": [2] + [7] * 39, "loss_mask": [0] * 39 + [1]}
    out = run("data", "inspect", data(*rows, late), "--max-length", "20", "--rows", "0").out
    assert "--- " not in out
    assert out.startswith("6 of 6 rows can be read as sft: tokens 6\n6 examples, 95 tokens, ")
    # A first token is never trained on: 1 + 2 + 9 + 9 + 29 + 1.
    assert "51 of them trained on (53.7%)" in out
    assert "mean 16, median 10, 90 % within 40, 99 % within 40, longest 40" in out
    bars = re.findall(r"^ +(\d+)-(\d+) +(#*) +(\d+)( <- max length)?$", out, re.MULTILINE)
    assert sum(int(bar[3]) for bar in bars) == 6 and bars[0][0] == "2"
    (mark,) = [bar for bar in bars if bar[4]]
    assert int(mark[0]) <= 20 <= int(mark[1])
    assert "longer than 20 tokens: 2 of 6; " in out
    assert "truncate cuts 1 and leaves out 1, whose targets are all beyond" in out


def test_rejected_rows_have_their_reasons(run, data):
    bad = [{"txt": 1}] * 30
    result = run("data", "inspect", file := data({"text": "a"}, *bad))
    assert result.code == 0
    assert "1 of 31 rows can be read as sft: text 1" in result.out
    assert f"rejected rows: 30\n  {file}:2: no known format in this row (keys: 'txt')" in result.out
    assert "  and 10 more\n" in result.out
    nothing = run("data", "inspect", data(*bad))
    assert nothing.out.startswith("0 of 30 rows can be read as sft: none\nrejected rows: 30")


def test_thoughts_and_another_tokenizer(run, data, model_folder):
    file = data({"messages": [USER, TWO, USER, TWO]})
    out = run("data", "inspect", file, "--thoughts", "drop", "--tokenizer", str(model_folder)).out
    assert "1 examples, " in out and "1 + 1" not in out
    assert out.count("[[Two.<turn|>]]") == 2


def test_colours_on_a_terminal(data, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    cli.main(["data", "inspect", data({"messages": [USER, SIX]})])
    assert "\x1b[32mSix.<turn|>\x1b[0m" in terminal.getvalue() and "[[" not in terminal.getvalue()


def test_mistakes_are_one_line(complaint, data, tmp_path):
    file = data({"text": "a"})
    for words, parts in (
        (("inspekt", file), ["inspekt", "inspect"]),
        (("inspect",), ["FILE"]),
        (("inspect", str(tmp_path / "nowhere")), ["no such file or folder"]),
        (("inspect", file, "--task", "spo"), ["unknown task 'spo'", "dpo, sft"]),
        (("inspect", file, "--thoughts", "off"), ["unknown thoughts 'off'"]),
        (("inspect", file, "--family", "big"), ["unknown family 'big'"]),
        (("inspect", file, "--max-length", "1"), ["--max-length is 1", "at least 2"]),
        (("inspect", file, "--rows", "-1"), ["--rows is -1", "at least 0"]),
        (("inspect", file, "--tokenizer", "nowhere"), ["nowhere"]),
        (("inspect", file, "--row", "1"), ["did you mean --rows?"]),
    ):
        line = complaint("data", *words)
        for part in parts:
            assert part in line
