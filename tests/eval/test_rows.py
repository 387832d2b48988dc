"""Rows of benchmark files: the same rows from every kind of file, and errors that say where."""

import gzip
import hashlib
import json

import pyarrow
import pytest
from pyarrow import parquet

from eval.rows import find_files, read_rows, unique_items
from eval.task import Item
from gemma4_jax.errors import UserError

ROWS = [
    {"id": "a", "problem": 'two\nlines, and "quotes"', "answer": "070"},
    {"id": "b", "problem": "ärgerlich — ١٢", "answer": "5"},
]


def _csv(rows):
    def quoted(value):
        return '"' + value.replace('"', '""') + '"'

    return "id,problem,answer\n" + "".join(
        ",".join(quoted(value) for value in row.values()) + "\r\n" for row in rows
    )


def _lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(path, rows=ROWS):
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    text = {
        "jsonl": _lines(rows),
        "json": json.dumps(rows),
        "csv": "\ufeff" + _csv(rows),  # as spreadsheets write it
    }[kind].encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize(
    "name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.json.gz", "x.csv", "x.CSV.gz", "x.parquet"]
)
def test_every_kind_of_file_gives_the_same_rows(name, tmp_path):
    if name.startswith("x.CSV"):
        path = _write(tmp_path / "x.csv.gz").rename(tmp_path / name)
    else:
        path = _write(tmp_path / name)
    rows = list(read_rows(path, ("id", "problem", "answer")))
    assert [dict(row.data) for row in rows] == ROWS
    assert [row.integer("answer") for row in rows] == [70, 5]
    # The first row of the CSV fills lines 2 and 3.
    second = 4 if ".csv" in name.lower() else 2
    assert rows[1].where == f"{path}:{second}"


def test_json_of_other_shapes(tmp_path):
    wrapped = tmp_path / "task.json"
    wrapped.write_text(json.dumps({"canary": "x", "examples": ROWS}))
    assert [dict(r.data) for r in read_rows(wrapped, ("id",))] == ROWS
    lines = tmp_path / "lines.json"
    lines.write_text(_lines(ROWS))
    assert [dict(r.data) for r in read_rows(lines, ("id",))] == ROWS
    one = tmp_path / "one.json"
    one.write_text(json.dumps({"id": "a", "options": ["x", "y"]}))
    assert [r.texts("options") for r in read_rows(one, ("id",))] == [["x", "y"]]


def test_a_folder_gives_the_files_that_are_asked_for(tmp_path):
    for name in ("data", "data/.cache"):
        (tmp_path / name).mkdir()
    test = _write(tmp_path / "data/test-00000-of-00001.jsonl", ROWS[:1])
    validation = _write(tmp_path / "data/validation-00000-of-00001.jsonl", ROWS[1:])
    _write(tmp_path / "data/.cache/test.jsonl")
    (tmp_path / "README.md").write_text("words")
    assert find_files(tmp_path) == [test, validation]
    assert find_files(tmp_path, named=r"(^|[/_-])test") == [test]
    with pytest.raises(UserError, match=r"'dev'.*; it has test-00000-of-00001\.jsonl, validation"):
        find_files(tmp_path, named="dev")


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_missing_columns_are_named(name, tmp_path):
    path = _write(tmp_path / name)
    with pytest.raises(UserError) as error:
        list(read_rows(path, ("id", "Question", "Subject")))
    line = 2 if name == "x.csv" else 1
    assert str(error.value) == (
        f"{path}:{line}: no 'Question', 'Subject' (columns here: 'id', 'problem', 'answer')"
    )


def test_a_null_is_a_missing_value(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(_lines([ROWS[0], {**ROWS[1], "answer": None}]))
    with pytest.raises(UserError, match=r"x\.jsonl:2: no 'answer'"):
        list(read_rows(path, ("answer",)))


def test_checksums(tmp_path):
    path = _write(tmp_path / "x.jsonl")
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(list(read_rows(path, (), sha256={"x.jsonl": right.upper(), "y.jsonl": "0"}))) == 2
    with pytest.raises(UserError, match=f"sha256 is {right}, the published file's abc; fetch"):
        list(read_rows(path, (), sha256={"x.jsonl": "abc"}))
    (tmp_path / "SHA256SUMS").write_text(f"{right}  x.jsonl\n{'0' * 64} *z.jsonl\n")
    assert len(list(read_rows(path, ()))) == 2
    with pytest.raises(UserError, match=f"SHA256SUMS says {'0' * 64}"):
        list(read_rows(_write(tmp_path / "z.jsonl"), ()))


def test_duplicate_ids_are_named(tmp_path):
    path = _write(tmp_path / "x.jsonl", [*ROWS, ROWS[0]])
    rows = read_rows(path, ("id",))
    with pytest.raises(UserError, match=r"x\.jsonl:3: id 'a' is already that of .*x\.jsonl:1"):
        unique_items((row, Item(id=row.text("id"), data={})) for row in rows)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', r"x\.jsonl:2: not JSON"),
        ("x.jsonl", b"\n\n", "no rows in"),
        ("x.json", b'["a"]', r"x\.json:1: a row must be a JSON object, got str"),
        ("x.csv", b"a,b\n1,2\n1,2,3\n", r"x\.csv:3: more fields than the header has columns \(2\)"),
        ("x.csv", b'a,b\n1,"2\n', r"x\.csv:2: not CSV"),
        ("x.csv", b"a\n\xff\n", "not UTF-8"),
        ("x.jsonl.gz", b"no gzip", "cannot read .*Not a gzipped file"),
        (
            "x.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9],
            "cannot read .*end-of-stream",
        ),
        ("x.parquet", b"no parquet", "not a Parquet file"),
        ("x.txt", b"", "no known kind of file"),
    ],
)
def test_broken_files(name, content, message, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(read_rows(path, ()))
    assert "\n" not in str(error.value)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        list(read_rows(tmp_path / "x.jsonl", ()))


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda row: row.text("n"), "'n' must be a string, got 3"),
        (lambda row: row.integer("s"), "'s' must be a whole number, got '3.5'"),
        (lambda row: row.integer("t"), "'t' must be a whole number, got True"),
        (lambda row: row.texts("s"), "'s' must be a list of strings"),
        (lambda row: row.one_of("s", ("A", "B")), "'s' must be one of A, B, got '3.5'"),
    ],
)
def test_values_of_another_kind(read, message, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"n": 3, "s": "3.5", "t": true, "f": 3.0}\n')
    (row,) = read_rows(path, ())
    assert row.integer("f") == 3
    with pytest.raises(UserError, match=message):
        read(row)
