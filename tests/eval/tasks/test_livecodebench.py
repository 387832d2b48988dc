"""LiveCodeBench against its own checker's recorded verdicts, in the sandbox, and on files that are wrong."""

import base64
import gzip
import json
import os
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval import lcb_driver, lcb_official
from eval.lcb_official import official
from eval.programs import Case, last_block
from eval.task import Answer, Graded, Item
from eval.tasks import livecodebench
from gemma4_jax.errors import UserError
from gemma4_jax.verify.sandbox import Limits, Outcome, Sandbox
from tests.eval.tasks.make_references import seconds
from tests.eval.tasks.support import load_fixture, needs_bubblewrap

# What the reference lets pass, and this does not: an object that says it equals everything.
CHEAT = "group, always equal, "

# Forks per job, so that 350 candidates cost seconds. They were all written here.
SERVER = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import lcb_driver
for job in sys.stdin.buffer:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        given = os.memfd_create("job")
        os.write(given, job)
        os.lseek(given, 0, 0)
        os.dup2(given, 0)
        os.dup2(write, 1)
        os.close(write)
        sys.stdin = open(0, closefd=False)
        try:
            lcb_driver.main()
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    sys.stdout.write(json.dumps(text) + "\\n")
    sys.stdout.flush()
"""


class Forked(Sandbox):
    """Runs the driver alone, without any protection."""

    def run(self, program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
        server = self.__dict__["server"]
        server.stdin.write(stdin + "\n")
        server.stdin.flush()
        text = json.loads(server.stdout.readline())
        return Outcome(status="ok", exit_code=0, stdout=text, stderr="", seconds=0.0)


@pytest.fixture
def forked() -> Iterator[Forked]:
    command = [sys.executable, "-I", "-c", SERVER, str(Path(lcb_driver.__file__).parent)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        sandbox = Forked()
        sandbox.__dict__["server"] = server
        yield sandbox
        assert server.stdin is not None
        server.stdin.close()


def cases_of(candidate: dict[str, Any]) -> list[Case]:
    pairs = zip(candidate["inputs"], candidate["outputs"], strict=True)
    return [Case(*pair) for pair in pairs]


def test_official_verdicts_are_the_references(forked, monkeypatch):
    candidates = load_fixture("lcb")
    assert len(candidates) >= 300
    different = {}
    for candidate in candidates:
        monkeypatch.setattr(lcb_official, "SECONDS", seconds(candidate["name"]))
        got = official(forked, candidate["code"], cases_of(candidate), candidate["function"])
        if got != candidate["results"]:
            different[candidate["name"]] = (candidate["results"], got)
    cheats = {c["name"] for c in candidates if c["name"].startswith(CHEAT) and all(c["results"])}
    assert len(cheats) >= 2 and set(different) == cheats, different
    assert all(got[-1] is False for _, got in different.values())
    passed = [all(r > 0 for r in candidate["results"]) for candidate in candidates]
    assert 80 < sum(passed) < len(passed) - 80


def test_extraction_is_the_references():
    for text, code, _ in load_fixture("extraction"):
        assert last_block(text) == code, text


QUIRKS = {
    # name: passes the strict check, passes the official check
    "sum, read, plain": (True, True),
    "sum, buffer read, plain": (True, True),
    "sum, buffer readline, plain": (True, False),
    "sum, for line, plain": (True, False),
    "sum, open 0, plain": (True, False),
    "sum, os read, plain": (True, False),
    "sum, name, plain": (True, True),
    "sum, stdout buffer": (True, False),
    "sum, global": (True, False),
    "sum, quit": (True, False),
    "sum, no import": (False, True),
    "sum, sys exit 1": (False, True),
    "sum, walks": (False, False),
    "sum, first only": (False, False),
    "twoSum, real list, Solution": (True, True),
    "twoSum, raises, function": (False, False),
    "score, fraction, Solution": (False, True),
    "score, deep, Solution": (True, True),
    "group, always equal, Solution": (False, False),
}


@needs_bubblewrap
@pytest.mark.parametrize("name", QUIRKS)
def test_where_strict_and_official_differ(name):
    candidate = next(c for c in load_fixture("lcb") if c["name"] == name)
    item = item_of(candidate)
    answer = Answer(text=f"So:\n```python\n{candidate['code']}\n```", sandbox=Sandbox())
    verdict = livecodebench.score(item, answer)
    got = (verdict.details["strict"], verdict.details["official"])
    assert got == QUIRKS[name], verdict.note
    assert verdict.score == got[0]
    assert verdict.extracted == candidate["code"]
    only = {(True, False): "only the strict", (False, True): "only the official"}.get(got, "")
    assert only in verdict.note and bool(verdict.note) == (got != (True, True))


@needs_bubblewrap
def test_late_and_dead_candidates(monkeypatch):
    monkeypatch.setattr(lcb_official, "SECONDS", 1)
    candidates = {c["name"]: c for c in load_fixture("lcb")}
    for name in ("sum, busy", "sum, os exit", "sum, keyboard", "twoSum, timeout, Solution"):
        candidate = candidates[name]
        got = official(Sandbox(), candidate["code"], cases_of(candidate), candidate["function"])
        assert got == candidate["results"], name


def test_summary_counts_the_difference():
    def graded(number: int, strict: bool, loose: bool) -> Graded:
        day = f"2024-0{number + 1}-05"
        item = Item(id=str(number // 2), data={"contest_date": day})
        verdict = livecodebench.Verdict(
            score=float(strict),
            extracted=None if number == 3 else "x",
            details={"strict": strict, "official": loose},
        )
        return Graded(item=item, sample=number % 2, verdict=verdict)

    both = [(True, True), (True, False), (True, False), (False, False)]
    got = livecodebench.summary([graded(i, *one) for i, one in enumerate(both)])
    assert got == {
        "strict": 0.75, "official": 0.25, "passes only strict": 2,
        "passes only official": 0, "without a program": 1, "first contest (yyyymmdd)": 20240105,
        "last contest (yyyymmdd)": 20240405,
    }  # fmt: skip


def test_no_block_is_no_answer():
    verdict = livecodebench.score(
        item_of(load_fixture("lcb")[0]), Answer(text="print(1)", sandbox=Sandbox())
    )
    assert (verdict.score, verdict.extracted) == (0.0, None)


def test_prompts():
    item = Item(id="1", data={"question_content": "Add.", "starter_code": ""})
    system, user = livecodebench.prompt(item, 0, "thinking")
    assert system["role"] == "system" and system["content"].startswith("You are an expert Python")
    assert user["content"].startswith(
        "### Question:\nAdd.\n\n### Format: Read the inputs from stdin"
    )
    assert user["content"].endswith(
        "```python\n# YOUR CODE HERE\n```\n\n### Answer: (use the provided format with backticks)\n\n"
    )
    item = Item(id="1", data={"question_content": "Add.", "starter_code": "class Solution:"})
    assert (
        "```python\nclass Solution:\n```"
        in livecodebench.prompt(item, 0, "reference")[1]["content"]
    )


# Files.


def item_of(candidate: dict[str, Any]) -> Item:
    pairs = zip(candidate["inputs"], candidate["outputs"], strict=True)
    tests = json.dumps([{"input": i, "output": o, "testtype": "stdin"} for i, o in pairs])
    data = {
        "question_content": "", "starter_code": "", "contest_date": "2024-01-01",
        "public_test_cases": tests, "private_test_cases": "[]", "function": candidate["function"],
    }  # fmt: skip
    return Item(id=candidate["name"], data=data)


def packed(value: object) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


def row(number: int = 1, day: str = "2024-08-15T00:00:00", **changes: object) -> dict[str, Any]:
    tests = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
    return {
        "question_title": "T", "question_content": "Q", "platform": "atcoder", "question_id": f"q{number}",
        "contest_id": "c", "contest_date": day, "starter_code": "", "difficulty": "easy",
        "public_test_cases": json.dumps(tests), "private_test_cases": packed(json.dumps(tests * 2)),
        "metadata": "{}",
    } | changes  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_windows_and_both_spellings_of_tests(tmp_path):
    days = ["2024-07-31", "2024-08-01", "2024-12-01T10:00:00", "2025-05-01", "2025-05-02"]
    plain = json.dumps([{"input": "a", "output": "b"}])
    rows = [row(i, day) for i, day in enumerate(days)]
    rows[2] |= {"private_test_cases": plain, "metadata": json.dumps({"func_name": "f"})}
    path = write(tmp_path / "lcb.jsonl", rows)
    task = livecodebench.task(start="2024-08-01", end="2025-05-01")
    items = task.load(path)
    assert [item.id for item in items] == ["q1", "q2", "q3"]
    assert "2024-08-01 to 2025-05-01" in task.title and "strict" in task.title
    assert items[1].data["function"] == "f" and items[0].data["function"] is None
    assert livecodebench.tests(items[0]) == [Case("1\n", "2\n")] * 3
    assert livecodebench.tests(items[1])[1:] == [Case("a", "b")]
    assert len(livecodebench.task().load(path)) == 5


def test_a_release_is_its_files_and_its_number(tmp_path, monkeypatch):
    for number, name in enumerate(("test.jsonl", "test2.jsonl", "test3.jsonl", "other.jsonl")):
        write(tmp_path / name, [row(number)])
    monkeypatch.setattr(livecodebench, "RELEASES", {"v1": 1, "v2": 2, "v3": 4})
    assert [i.id for i in livecodebench.load(tmp_path, "v2")] == ["q0", "q1"]
    with pytest.raises(UserError, match="release v3 has 4 problems, found 3"):
        livecodebench.load(tmp_path, "v3")
    with pytest.raises(UserError, match="unknown release 'v9'"):
        livecodebench.task("v9")


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_bomb_is_refused_and_does_not_go_off(tmp_path):
    trace = tmp_path / "went off"
    path = write(tmp_path / "b.jsonl", [row(), row(2, private_test_cases=packed(Bomb(trace)))])
    with pytest.raises(UserError, match=r"b.jsonl:2: .*names posix.system"):
        livecodebench.load(path)
    assert not trace.exists()
    with pytest.raises(UserError, match="list, not of a string"):
        livecodebench.unpickled(pickle.dumps(["x"]))
    with pytest.raises(UserError, match="no pickle"):
        livecodebench.unpickled(pickle.dumps("x")[:-3])
    for protocol in range(6):
        assert livecodebench.unpickled(pickle.dumps("é" * 300, protocol)) == "é" * 300


def test_a_compression_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(livecodebench, "UNPACKED", 1 << 20)
    path = write(
        tmp_path / "z.jsonl", [row(private_test_cases=packed("[" + " " * (1 << 21) + "]"))]
    )
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        livecodebench.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contest_date": "soon"}, "'contest_date' must be an ISO date, got 'soon'"),
        ({"private_test_cases": "garbage"}, "neither JSON nor base64"),
        ({"private_test_cases": '{"input": 1}'}, "list of objects"),
        ({"private_test_cases": '[{"input": "1"}]'}, "list of objects"),
        ({"private_test_cases": "[]", "public_test_cases": "[]"}, "no tests"),
        ({"metadata": "{"}, "cannot be read"),
        ({"difficulty": None}, "no 'difficulty'"),
        ({"question_id": "q0"}, "'q0' is already that of"),
    ],
)
def test_rows_that_are_wrong(tmp_path, changes, message):
    path = write(tmp_path / "w.jsonl", [row(0), row(1, **changes)])
    with pytest.raises(UserError, match=r"w\.jsonl:2: ") as caught:
        livecodebench.load(path)
    assert message in str(caught.value)


def test_windows_that_are_wrong(tmp_path):
    path = write(tmp_path / "w.jsonl", [row()])
    with pytest.raises(UserError, match="start must be a date like 2024-08-01, got '2024/08/01'"):
        livecodebench.task(start="2024/08/01")
    with pytest.raises(UserError, match=r"ends .* before it begins"):
        livecodebench.load(path, start="2025-01-01", end="2024-01-01")
    with pytest.raises(UserError, match="no problem from 2030-01-01 to the last"):
        livecodebench.load(path, start="2030-01-01")
    with pytest.raises(UserError, match="unknown way of checking"):
        livecodebench.task(checking="lenient")


def test_gzip_and_one_file_of_a_release(tmp_path, monkeypatch):
    monkeypatch.setattr(livecodebench, "RELEASES", {"v6": 1})
    path = tmp_path / "all.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row()).encode() + b"\n"))
    assert len(livecodebench.load(path, "v6")) == 1
