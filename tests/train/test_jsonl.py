"""Rows of files by number."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from gemma4_jax.errors import UserError
from train.data import jsonl
from train.data.jsonl import JsonlSource, find_files


def test_rows_come_in_order_with_their_places(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"i": 2}\n\n   \n{"i": 3}')
    (tmp_path / "a.jsonl").write_text('{"i": 0}\n{"i": 1}\n')
    (tmp_path / "note.txt").write_text("not data")
    source = JsonlSource(find_files(tmp_path))
    assert [source[i]["i"] for i in range(len(source))] == [0, 1, 2, 3]
    assert [source.where(i).rsplit("/", 1)[1] for i in range(4)] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "b.jsonl:1",
        "b.jsonl:4",
    ]


def test_lines_across_chunks_and_non_ascii(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_CHUNK", 7)
    rows = [{"text": "ä€😀" * (i % 5), "i": i} for i in range(50)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline="")
    source = JsonlSource([file])
    assert [source[i] for i in range(len(source))] == rows


def test_threads_read_without_disturbing_each_other(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"i": i, "pad": "x" * (i % 97)}) + "\n" for i in range(500)))
    source = JsonlSource([file])
    with ThreadPoolExecutor(8) as pool:
        assert [row["i"] for row in pool.map(source.__getitem__, range(500))] == list(range(500))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"i": 1}\n{"i": \n', "data.jsonl:2: not JSON"),
        ('{"i": 1}\n[1]\n', "data.jsonl:2: a row must be a JSON object, got list"),
        ('{"i": 1}\n"\udcff"\n', "data.jsonl:2: not UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, words):
    file = tmp_path / "data.jsonl"
    file.write_bytes(text.encode(errors="surrogateescape"))
    source = JsonlSource([file])
    with pytest.raises(UserError, match=words):
        source[1]


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_empty_file(tmp_path, text):
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=r"no rows in .*data\.jsonl: the file is empty"):
        JsonlSource([file])


def test_wrong_paths(tmp_path):
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no \*\.jsonl file in folder"):
        find_files(tmp_path)
