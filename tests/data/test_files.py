"""Rows of files by number, whatever they are stored as."""

import json
from concurrent.futures import ThreadPoolExecutor

import pyarrow
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from pyarrow import parquet

from gemma4_jax.data import jsonl
from gemma4_jax.data.files import Rows, find_files
from gemma4_jax.errors import UserError

CHAT = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    {
        "messages": [
            {"role": "user", "content": "weather"},
            {
                "role": "assistant",
                "tool_calls": [{"function": {"name": "w", "arguments": '{"city": "P"}'}}],
            },
        ],
        "tools": "[]",
    },
]


def write_parquet(file, rows, group=2):
    keys = dict.fromkeys(key for row in rows for key in row)
    table = pyarrow.Table.from_pylist([{key: row.get(key) for key in keys} for row in rows])
    parquet.write_table(table, file, row_group_size=group)


def write_records(file, rows):
    writer = ArrayRecordWriter(str(file), "group_size:1")
    for row in rows:
        writer.write(row if isinstance(row, bytes) else json.dumps(row).encode())
    writer.close()


def read(path):
    rows = Rows(find_files(path))
    return [rows[i] for i in range(len(rows))]


def test_rows_come_in_order_with_their_places(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"i": 2}\n\n   \n{"i": 3}')
    (tmp_path / "a.jsonl").write_text('{"i": 0}\n{"i": 1}\n')
    (tmp_path / "note.txt").write_text("not data")
    (tmp_path / "info.json").write_text('{"about": "the data"}')
    write_parquet(tmp_path / "c.parquet", [{"i": i} for i in (4, 5, 6)])
    write_records(tmp_path / "d.array_record-00000-of-00001", [{"i": 7}, {"i": 8}])
    rows = Rows(find_files(tmp_path))
    assert [rows[i]["i"] for i in range(len(rows))] == list(range(9))
    assert [rows[i]["i"] for i in (6, 2, 8, 4)] == [6, 2, 8, 4]
    assert [rows.where(i).rsplit("/", 1)[1] for i in range(9)] == [
        "a.jsonl:1",
        "a.jsonl:2",
        "b.jsonl:1",
        "b.jsonl:4",
        *("c.parquet:1", "c.parquet:2", "c.parquet:3"),
        *("d.array_record-00000-of-00001:1", "d.array_record-00000-of-00001:2"),
    ]


def test_all_kinds_give_the_same_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CHAT))
    write_parquet(tmp_path / "rows.parquet", CHAT)
    write_records(tmp_path / "rows.array_record", CHAT)
    for kind in ("jsonl", "parquet", "array_record"):
        # Arrow gave every message all keys, and every row `tools`: they must be gone again.
        assert read(tmp_path / f"rows.{kind}") == CHAT, kind


def test_globs(tmp_path):
    for name in ("a/x.jsonl", "b/y.jsonl", "b/c/z.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"name": name}) + "\n")
    names = [row["name"] for row in read(tmp_path / "*" / "*.jsonl")]
    assert names == ["a/x.jsonl", "b/y.jsonl"]
    assert len(read(tmp_path / "**" / "*.jsonl")) == 3
    odd = tmp_path / "with[1].jsonl"
    odd.write_text('{"name": "odd"}\n')
    assert read(odd) == [{"name": "odd"}]


def test_a_json_file_of_lines_is_read_when_named(tmp_path):
    (tmp_path / "rows.json").write_text('{"i": 0}\n{"i": 1}\n')
    assert read(tmp_path / "rows.json") == [{"i": 0}, {"i": 1}]


def test_lines_across_chunks_and_non_ascii(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "_CHUNK", 7)
    rows = [{"text": "ä€😀" * (i % 5), "i": i} for i in range(50)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows), newline="")
    assert read(file) == rows


def test_threads_read_without_disturbing_each_other(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"i": i, "pad": "x" * (i % 97)}) + "\n" for i in range(500)))
    rows = Rows([file])
    with ThreadPoolExecutor(8) as pool:
        assert [row["i"] for row in pool.map(rows.__getitem__, range(500))] == list(range(500))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"i": 1}\n{"i": \n', "data.jsonl:2: not JSON"),
        ('{"i": 1}\n[1]\n', "data.jsonl:2: a row must be a JSON object, got list"),
        ('{"i": 1}\n"\udcff"\n', "data.jsonl:2: not UTF-8"),
        ('{"i": 1}\n[\n{"i": 1}]', "data.jsonl:2: not JSON: .*one array, write one object a line"),
    ],
)
def test_bad_lines_are_named(tmp_path, text, words):
    file = tmp_path / "data.jsonl"
    file.write_bytes(text.encode(errors="surrogateescape"))
    rows = Rows([file])
    with pytest.raises(UserError, match=words):
        rows[1]


def test_bad_records_are_named(tmp_path):
    file = tmp_path / "data.arrayrecord"
    write_records(file, [{"i": 1}, b"\x00\x01"])
    rows = Rows([file])
    assert rows[0] == {"i": 1}
    with pytest.raises(UserError, match=r"data.arrayrecord:2: not JSON"):
        rows[1]


@pytest.mark.parametrize("text", ["", "\n\n  \n"])
def test_empty_file(tmp_path, text):
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(UserError, match=r"no rows in .*data\.jsonl: the file is empty"):
        Rows([file])


@pytest.mark.parametrize("kind", ["parquet", "array_record"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PAR1" + bytes(100_000)])
def test_files_that_are_not_what_their_names_say(tmp_path, kind, content):
    file = tmp_path / f"data.{kind}"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.\w+: not an? \w+ file") as error:
        Rows([file])
    assert "\n" not in str(error.value)


def test_wrong_paths(tmp_path):
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere .*quoted glob"):
        find_files(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no data file in folder .*\.jsonl, \.parquet"):
        find_files(tmp_path)
    with pytest.raises(UserError, match=r"no file matches .*x\*\.jsonl"):
        find_files(tmp_path / "x*.jsonl")
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"rows\.csv: no known kind of data file \(known: .jsonl"):
        find_files(tmp_path / "rows.csv")
