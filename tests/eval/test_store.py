"""No line is lost or doubled, whatever a kill leaves at the end of the file."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from eval.store import Generation, Store, read
from gemma4_jax.errors import UserError


def made(number: int, text: str = "ü\n\ud800") -> Generation:
    return Generation(
        key=f"key{number}", task="t", item=f"i{number}", sample=0, seed=7, model="m",
        protocol="thinking", messages=[{"role": "user", "content": "?"}],
        settings={"temperature": 1.0, "stop": []}, text=text, thought=None, answer=text,
        finish_reason="stop", truncated=False, unfinished_thought=False, prompt_tokens=1,
        thought_tokens=0, answer_tokens=2, seconds=0.5,
    )  # fmt: skip


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run" / "generations.jsonl"
    with Store(file) as store:
        for i in range(3):
            store.append(made(i))
    return file


def test_round_trip(path):
    assert list(read(path)) == [made(0), made(1), made(2)]
    assert [json.loads(line)["item"] for line in path.read_bytes().splitlines()] == [
        "i0",
        "i1",
        "i2",
    ]


def test_a_line_torn_anywhere_is_cut_off_and_the_others_stay(path):
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for end in range(last + 1, len(whole)):
        path.write_bytes(whole[:end])
        assert [g.key for g in read(path)] == ["key0", "key1"]
    with Store(path) as store:
        assert store.keys == {"key0", "key1"} and store.torn == len(whole) - 1 - last
        store.append(made(2))
    assert path.read_bytes() == whole


def test_zeros_that_a_power_cut_leaves_are_cut_off(path):
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 5000)
    with Store(path) as store:
        assert store.torn == 5000
    path.write_bytes(whole + b"\0" * 9 + b"\n")
    with Store(path) as store:
        assert store.torn == 10
    assert path.read_bytes() == whole


def test_a_line_longer_than_a_block_is_found_whole(path):
    with Store(path) as store:
        store.append(made(3, "x" * 3_000_000))
    with Store(path) as store:
        assert store.torn == 0 and "key3" in store.keys


def test_an_empty_file_and_a_torn_first_line(tmp_path):
    file = tmp_path / "g.jsonl"
    file.write_bytes(b'{"key": "k')
    with Store(file) as store:
        assert (store.keys, store.torn) == (set(), 10)
    assert file.read_bytes() == b""


def test_a_key_goes_in_once(path):
    with Store(path) as store, pytest.raises(ValueError, match="i1 sample 0 is there"):
        store.append(made(1))


def test_damage_is_named_by_its_line(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{nonsense}\n" + lines[2])
    with pytest.raises(UserError, match=r"generations.jsonl:2 is no JSON object; delete that line"):
        Store(path)
    path.write_bytes(lines[0] + b'{"row": 1}\n' + lines[2])
    with pytest.raises(UserError, match=":2: no 'answer', so this is no generation"):
        Store(path)
    path.write_bytes(lines[0] + lines[1] + lines[0])
    with pytest.raises(UserError, match=":3 has the key of line 1"):
        Store(path)


def test_a_second_run_is_refused_until_the_first_is_gone(path, repository):
    holder = (
        "import sys, time; from pathlib import Path; from eval.store import Store\n"
        "store = Store(Path(sys.argv[1])); print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(path)], cwd=repository, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "open\n"
        with pytest.raises(UserError, match="another run is writing to"):
            Store(path)
        assert len(list(read(path))) == 3  # who only reads may
        other.kill()
    Store(path).close()


def test_a_full_disk_leaves_whole_lines(path, monkeypatch):
    whole = path.read_bytes()
    with Store(path) as store:
        real = os.write
        monkeypatch.setattr(os, "write", lambda file, line: real(file, line[:20]))
        with pytest.raises(UserError, match=r"cannot write to .*make room, and the same command"):
            store.append(made(9))
        monkeypatch.undo()
        assert path.read_bytes() == whole
        store.append(dataclasses.replace(made(9), text="later"))
    assert [g.key for g in read(path)][-1] == "key9"
