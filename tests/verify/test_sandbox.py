"""Programs in the sandbox that mean no harm: they run as Python runs them, and their ends are told apart."""

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.verify import bubblewrap, inside, sandbox
from gemma4_jax.verify.sandbox import Limits, Sandbox
from tests.verify.modes import BOTH, needs_bubblewrap


@pytest.fixture(params=BOTH)
def box(request: pytest.FixtureRequest) -> Sandbox:
    return Sandbox(isolation=request.param)


def test_input_and_outputs_pass_through(box: Sandbox) -> None:
    ended = box.run("import sys\nprint(input().upper())\nprint('so', file=sys.stderr)", "h\u00e9\n")
    assert (ended.status, ended.exit_code) == ("ok", 0)
    assert (ended.stdout, ended.stderr) == ("H\u00c9\n", "so\n")


@pytest.mark.parametrize(
    "reading",
    [
        "sys.stdin.read()",
        "sys.stdin.buffer.read().decode()",
        "open(0).read()",
        "''.join(sys.stdin)",
        "os.read(0, 1 << 23).decode()",
        pytest.param("open('/dev/stdin').read()", marks=needs_bubblewrap),
    ],
)
def test_three_megabytes_of_input_arrive_however_they_are_read(reading: str) -> None:
    isolation = "bubblewrap" if "dev" in reading else "weak"
    text = "0123456789abcde\n" * 200_000
    ended = Sandbox(isolation=isolation).run(f"import os, sys\nprint(len({reading}))", text)
    assert ended.stdout == "3200000\n", ended


def test_programs_are_scripts(box: Sandbox) -> None:
    program = """
import sys, __main__
from dataclasses import dataclass
@dataclass
class Point: x: int = 5
def here(): return Point().x
if __name__ == "__main__":
    print(here(), __main__.here(), len(sys.argv))
    quit(3)
"""
    ended = box.run(program)
    assert (ended.status, ended.exit_code, ended.stdout) == ("failed", 3, "5 5 1\n")


def test_errors_are_shown_as_python_shows_them(box: Sandbox) -> None:
    ended = box.run("def f():\n    return 1 / 0\nf()")
    assert ended.status == "failed"
    assert ended.stderr.startswith(
        'Traceback (most recent call last):\n  File "program.py", line 3'
    )
    assert "    return 1 / 0\n" in ended.stderr
    assert ended.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert box.run("x = (").stderr.endswith("SyntaxError: '(' was never closed\n")


def test_a_program_that_filled_its_memory_still_shows_where(box: Sandbox) -> None:
    limits = Limits(memory_bytes=96 << 20)
    ended = box.run("kept = []\nwhile True: kept.append(bytearray(1 << 16))", limits=limits)
    assert ended.status == "memory"
    assert "    while True: kept.append(bytearray(1 << 16))\n" in ended.stderr


def test_odd_text_is_only_text(box: Sandbox) -> None:
    assert box.run("print('\ud800', input())", "\udfff").stdout == "? ?\n"
    assert box.run("import os; os.write(1, b'\\xff\\n')").stdout == "\ufffd\n"
    assert box.run("x = '\0'").status == "failed"


def test_deep_recursion_in_a_thread_as_contest_programs_do_it(box: Sandbox) -> None:
    program = """
import sys, threading
sys.setrecursionlimit(10**6); threading.stack_size(1 << 26)
def depth(n): return n and depth(n - 1) + 1
thread = threading.Thread(target=lambda: print(depth(50000))); thread.start(); thread.join()
"""
    assert box.run(program).stdout == "50000\n"


@needs_bubblewrap
def test_the_working_directory_is_a_programs_own() -> None:
    program = "import tempfile\nwith tempfile.TemporaryFile('w+') as f: print(f.write('x' * 1000))"
    assert Sandbox().run(program).stdout == "1000\n"
    assert Sandbox().run("open('left', 'w').write('x')").status == "ok"
    assert Sandbox().run("import os; print(os.listdir())").stdout == "[]\n"


@pytest.mark.parametrize("isolation", BOTH)
def test_packages_are_there_only_if_asked_for(isolation: Any, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("value = 7")
    program = "import helper; print(helper.value)"
    assert "ModuleNotFoundError" in Sandbox(isolation=isolation).run(program).stderr
    box = Sandbox(isolation=isolation, packages=(tmp_path,))
    assert box.run(program).stdout == "7\n"
    assert "ModuleNotFoundError" in box.run("import numpy").stderr


@pytest.mark.parametrize("isolation", BOTH)
def test_numpy_runs(isolation: Any) -> None:
    box = Sandbox(isolation=isolation, packages=True)
    program = "import numpy as np\ndef f(n): return np.eye(n) @ np.arange(n), np.int64(3)"
    calls = box.call(program, "f", [[2]])
    assert calls.results[0].value == ([0.0, 1.0], 3), calls


def test_calls_give_values_with_their_types(box: Sandbox) -> None:
    program = "def f(*x):\n    print('noise')\n    return x"
    given = [
        [1, 2.5, None, True],
        ["\u00e9\ud800", b"\x00", [1, (2, {3})]],
        [{(1, 2): {"a": 2**100}}],
    ]
    calls = box.call(program, "f", given)
    assert [r.value for r in calls.results] == [tuple(each) for each in given]
    assert [r.error for r in calls.results] == [""] * 3
    assert (calls.outcome.status, calls.outcome.stdout) == ("ok", "noise\n" * 3)


def test_calls_of_methods_use_one_object(box: Sandbox) -> None:
    program = "class Solution:\n    n = 0\n    def f(self, x):\n        self.n += x\n        return self.n"
    assert [r.value for r in box.call(program, "Solution.f", [[1], [2], [3]]).results] == [1, 3, 6]


def test_one_failed_call_is_not_the_next_ones(box: Sandbox) -> None:
    program = """
import os, sys
def f(x):
    if x == 1: raise ValueError("one")
    if x == 2: sys.exit(0)
    if x == 3: return print
    if x == 4: os._exit(0)
    return x
"""
    results = box.call(program, "f", [[n] for n in range(6)]).results
    assert results[0].value == 0
    assert [r.error for r in results[1:]] == [
        "ValueError: one",
        "SystemExit: 0",
        "TypeError: a value of type builtin_function_or_method cannot leave the program",
        "ended early",
        "ended early",
    ]


def test_a_function_that_is_not_there(box: Sandbox) -> None:
    assert box.call("x = 1", "f", [[]]).results[0].error == "NameError: the program defines no 'f'"
    assert box.call("1 / 0", "f", [[]]).results[0].error == "ZeroDivisionError: division by zero"


def test_a_slow_call_ends_them_early(box: Sandbox) -> None:
    program = "def f(x):\n    while x: pass\n    return x"
    calls = box.call(program, "f", [[0], [1], [0]], seconds_each=0.5)
    assert calls.results[0].value == 0
    assert [r.error for r in calls.results[1:]] == ["timeout", "timeout"]
    assert calls.outcome.seconds < 5


def test_tests_see_what_a_program_does_to_their_arguments(box: Sandbox) -> None:
    program = "def f(x, y): x.sort(); y['k'] = len(x)"
    tests = "a, b = [2, 1], {}\nassert f(a, b) is None\nassert (a, b) == ([1, 2], {'k': 2})"
    assert box.test(program, tests, ["f"]).passed


def test_tests_see_a_programs_exceptions(box: Sandbox) -> None:
    tests = "try: f(0)\nexcept ZeroDivisionError: pass\nelse: assert False"
    assert box.test("def f(x): return 1 / x", tests, ["f"]).passed
    assert not box.test("def f(x): return x", tests, ["f"]).passed


def test_a_failed_test_names_its_line(box: Sandbox) -> None:
    tested = box.test("def f(x): return x", "assert f(1) == 1\nassert f(2) == 3, 'two'", ["f"])
    assert tested.note == "AssertionError: two at \"assert f(2) == 3, 'two'\""


def test_a_preamble_does_not_stand_in_for_the_program(box: Sandbox) -> None:
    preamble = "def helper(x): return x + 1\ndef f(x): return 2"
    tests = "assert helper(1) == f(1)"
    assert not box.test("def f(x): return 3", tests, ["f"], preamble=preamble).passed
    assert box.test("def f(x): return x * 2", tests, ["f"], preamble=preamble).passed


def test_methods_in_tests(box: Sandbox) -> None:
    program = "class Solution:\n    def f(self, x): return x + 1"
    assert box.test(program, "assert Solution().f(1) == 2", ["Solution.f"]).passed


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, -(2**63), 2**63, 1e300, math.inf, 2j),
        *("\ud800", b"\xff", bytearray(b"a"), [], (), {1, "a"}, frozenset({(1,)})),
        *({1: {(2, 3): [4]}, "dict": None}, {"tuple": [1]}),
    ],
)
def test_values_keep_their_types_through_json(value: Any) -> None:
    back = inside.decode(json.loads(json.dumps(inside.encode(value))))
    assert back == value
    assert type(back) is type(value)


def test_limits_are_checked() -> None:
    with pytest.raises(UserError, match="memory_bytes 1000 is less than Python's own 64 MiB"):
        Limits(memory_bytes=1000)
    for wrong in ({"seconds": 0.0}, {"seconds": math.inf}, {"output_bytes": 0}, {"disk_bytes": 1}):
        with pytest.raises(UserError, match="limits must be finite and above 0"):
            Limits(**wrong)  # type: ignore[arg-type]


def test_an_unknown_isolation_is_not_the_default() -> None:
    box = Sandbox()
    object.__setattr__(box, "isolation", "week")  # as a caller without checked annotations gives it
    with pytest.raises(UserError, match=r"unknown isolation 'week'; did you mean 'weak'\?"):
        box.__post_init__()


def test_without_bubblewrap_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    bubblewrap.executable.cache_clear()
    try:
        with pytest.raises(UserError) as raised:
            Sandbox().run("print(1)")
    finally:
        bubblewrap.executable.cache_clear()
    assert "apt install bubblewrap" in str(raised.value)
    assert 'isolation="weak"' in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("echo 'bubblewrap 0.6.1'", "is 'bubblewrap 0.6.1'; install 0.8 or newer"),
        (
            '[ "$1" = --version ] && echo bubblewrap 0.9 || { echo no namespaces >&2; exit 1; }',
            "bubblewrap cannot make a sandbox here: no namespaces; allow user namespaces",
        ),
    ],
)
def test_a_bubblewrap_that_fails_is_no_failed_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, expected: str
) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\n{says}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    bubblewrap.executable.cache_clear()
    try:
        with pytest.raises(UserError, match=expected):
            Sandbox().run("print(1)")
        with pytest.raises(UserError, match=expected):
            Sandbox().test("", "", [])
    finally:
        bubblewrap.executable.cache_clear()


def test_the_weak_mode_says_so_once(capfd: pytest.CaptureFixture[str]) -> None:
    sandbox._say_what_is_lacking.cache_clear()
    for _ in range(2):
        assert Sandbox(isolation="weak").run("print(1)").stdout == "1\n"
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith('warning: isolation="weak"')


def test_nothing_is_left_open(box: Sandbox) -> None:
    box.run("print(1)")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        box.run("print(1)")
        box.call("def f(): pass", "f", [[]])
        box.test("def f(): pass", "f()", ["f"])
    assert len(os.listdir("/proc/self/fd")) == before
    assert sys.executable  # the interpreter of the programs is that of the tests
