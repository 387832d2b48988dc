"""The pass over a data set: limits, errors with file and line, a cache that is whole or absent."""

import json
import pickle

import numpy as np
import pytest

from gemma4_jax.data.encode import Encoded, Sequence
from gemma4_jax.errors import UserError
from train.data import prepared
from train.data.prepared import prepare, rejected_rows


def encode(row):
    """A row says how many tokens it has and from which one on they count."""
    if "bad" in row:
        raise UserError("a bad row")
    tokens = np.arange(row["n"], dtype=np.int32) + row.get("from", 0)
    mask = np.arange(row["n"]) >= row["learn"]
    example = (Sequence(tokens, mask),) * row.get("copies", 1)
    return Encoded(row.get("format", "some"), [example] * row.get("examples", 1))


def run(file, tmp_path, *, max_length=10, overlong="error", on_error="stop", **settings):
    return prepare(
        file,
        encode,
        max_length=max_length,
        overlong=overlong,
        cache_dir=tmp_path / "cache",
        settings=settings,
        on_error=on_error,
    )


def test_sequences_come_back(rows_file, tmp_path):
    file = rows_file({"n": 4, "learn": 2}, {"n": 3, "learn": 1, "from": 7, "copies": 2})
    data = run(file, tmp_path)
    assert data.lengths.tolist() == [4, 3, 3]
    assert data.sequence(0).tokens.tolist() == [0, 1, 2, 3]
    assert data.sequence(0).loss_mask.tolist() == [False, False, True, True]
    assert data.sequence(2).tokens.tolist() == [7, 8, 9]
    assert data.summary == "2 rows (some), 10 tokens, 6 of them trained on, longest 4"
    again = pickle.loads(pickle.dumps(data))
    assert again.sequence(2).tokens.tolist() == [7, 8, 9] and again.lengths.tolist() == [4, 3, 3]
    # The bytes on disk are not copied into the pickle: worker processes map them.
    assert again.tokens.filename == data.tokens.filename and len(pickle.dumps(data)) < 1000


def test_formats_and_examples_are_counted(rows_file, tmp_path):
    rows = [{"n": 4, "learn": 2}] * 2 + [{"n": 3, "learn": 1, "examples": 3, "format": "other"}]
    data = run(rows_file(*rows, {"n": 12, "learn": 2, "examples": 2}), tmp_path, overlong="drop")
    assert data.lengths.tolist() == [4, 4, 3, 3, 3]
    assert data.summary == (
        "4 rows (some 3, other 1), 5 examples, 17 tokens, 10 of them trained on, longest 12; "
        "2 longer than 10: 2 dropped, 0 cut"
    )


def test_overlong_is_an_error_that_says_how_many(rows_file, tmp_path):
    rows = [{"n": 4, "learn": 2}, {"n": 11, "learn": 2}, {"n": 30, "learn": 2}]
    with pytest.raises(
        UserError, match=r"2 of 3 rows are longer than data.max_length = 10 .*longest 30.*jsonl:2"
    ):
        run(rows_file(*rows), tmp_path)
    assert not any((tmp_path / "cache").iterdir())


def test_overlong_drop_and_truncate(rows_file, tmp_path):
    file = rows_file(
        {"n": 4, "learn": 2},
        {"n": 12, "learn": 8},
        {"n": 12, "learn": 11},
        {"n": 12, "learn": 9, "copies": 2},
    )
    dropped = run(file, tmp_path, overlong="drop")
    assert dropped.lengths.tolist() == [4]
    assert dropped.summary.endswith("; 3 longer than 10: 3 dropped, 0 cut")
    cut = run(file, tmp_path, overlong="truncate")
    # The third row has nothing to learn within 10 tokens; the fourth stays with both its copies.
    assert cut.lengths.tolist() == [4, 10, 10, 10]
    assert cut.summary.endswith("; 3 longer than 10: 1 dropped, 2 cut")


def test_nothing_left(rows_file, tmp_path):
    with pytest.raises(UserError, match=r"all 2 rows are longer than data.max_length = 10"):
        run(rows_file(*[{"n": 12, "learn": 1}] * 2), tmp_path, overlong="drop")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"bad": 1}, "jsonl:2: a bad row"),
        ({"n": 4, "learn": 4}, "jsonl:2: no token to learn from"),
        ("{", "jsonl:2: not JSON"),
    ],
)
def test_bad_rows_are_named(rows_file, tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        run(rows_file({"n": 4, "learn": 2}, row), tmp_path)


def test_bad_rows_are_skipped_and_listed(rows_file, tmp_path):
    good, bad = {"n": 4, "learn": 2}, [{"bad": 1}, "{", {"n": 4, "learn": 4}]
    file = rows_file(bad[0], good, *bad[1:], good)
    data = run(file, tmp_path, on_error="skip")
    assert data.lengths.tolist() == [4, 4]
    assert f"; 3 rows rejected, the first at {file}:1: a bad row" in data.summary
    listed = rejected_rows(data)
    assert [row["where"] for row in listed] == [f"{file}:{line}" for line in (1, 3, 4)]
    assert [row["reason"].split(":")[0] for row in listed] == [
        "a bad row",
        "not JSON",
        "no token to learn from in this row",
    ]
    # The cache of a pass that skipped must not serve one that is to stop.
    with pytest.raises(UserError, match="jsonl:1: a bad row"):
        run(file, tmp_path)


def test_rejecting_everything_is_an_error(rows_file, tmp_path):
    with pytest.raises(UserError, match=r"all 2 rows were rejected, the first at .*:1: a bad row"):
        run(rows_file({"bad": 1}, {"bad": 2}), tmp_path, on_error="skip")


def test_cache_is_used_and_keyed_by_everything(rows_file, tmp_path, monkeypatch):
    file = rows_file({"n": 4, "learn": 2})
    first = run(file, tmp_path, tokenizer="a")
    others = [
        run(file, tmp_path, tokenizer="b"),
        run(file, tmp_path, tokenizer="a", max_length=9),
        run(file, tmp_path, tokenizer="a", overlong="drop"),
        run(rows_file({"n": 5, "learn": 2}), tmp_path, tokenizer="a"),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 5

    def must_not_run(*args):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(prepared, "_build", must_not_run)
    moved = file.with_name("moved.jsonl")
    moved.write_text(json.dumps({"n": 4, "learn": 2}) + "\n")
    again = run(moved, tmp_path, tokenizer="a")
    assert again.fingerprint == first.fingerprint
    assert again.sequence(0).tokens.tolist() == [0, 1, 2, 3]


def test_cache_folder_that_cannot_be_written(rows_file, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(UserError, match=r"cannot write tokenised rows to .*data.cache_dir"):
        run(rows_file({"n": 4, "learn": 2}), tmp_path)
