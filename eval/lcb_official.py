"""LiveCodeBench's own verdicts, to the quirk, with the expected outputs kept outside the sandbox.

    official(sandbox, code, cases, function=None)     # [True, True, -2]: as testing_util.run_test returns

The quirks of lcb_runner/evaluation/testing_util.py (MIT, 2025) that decide verdicts, all kept:
  * one interpreter for all tests of a candidate: globals, caches and the `Solution` object live on
  * a long prelude of star imports: a program without its `import math` passes
  * the program becomes a local function; its own imports stay global. A top-level variable that functions
    declare `global` is a NameError
  * `sys.stdin.buffer.readline()` is line 1 for ever; `for line in sys.stdin` is a TypeError;
    `sys.stdin.read()` gives all of it every time; `open(0)` and `os.read(0)` are empty
  * a `stdin` imported by name is the real one, empty but for `read`, `readlines` and `readline`, which gives
    lines without their ends, and a StopIteration after the last
  * `sys.stdout.buffer` does not exist; `os.write(1)` and a `stdout` imported by name write to nowhere
  * `exit()` ends a stdin program quietly, with what it printed; in a function it ends the candidate
  * 6 s per test and for loading; the alarm is an exception, which a bare `except` swallows
  * the first failure ends the candidate

Two things are not kept: a candidate that looks for the expected output in its caller's frames finds none,
and an object whose `==` is always true equals nothing. Also not here: numpy, which is in the reference's
environment; memory without bound (4 GiB here).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.programs import Case, differs
from gemma4_jax.verify import inside
from gemma4_jax.verify.sandbox import Limits, Sandbox

SECONDS = 6  # per test
MEMORY = 4 << 30
WRONG, LATE, ERROR = -2, -3, -4

_DRIVER = Path(__file__).with_name("lcb_driver.py")


def official(
    sandbox: Sandbox, code: str, cases: Sequence[Case], function: str | None
) -> list[bool | int]:
    """The reference's result list: True per test, then -2 wrong, -3 late or -4 error, and no more.

    function: its name, for call-based problems. [-2] also stands for a candidate whose process died.
    """
    lines = _run(sandbox, code, [case.input for case in cases], function)
    results: list[bool | int] = []
    for case in cases:
        line = lines[len(results)] if len(results) < len(lines) else {}
        if "load" in line:
            return [ERROR]
        if "late" in line:
            return [*results, LATE if line["late"] else ERROR]
        if "value" in line:
            expected = _expected(case)
            if expected is _UNREADABLE:
                return [ERROR]
            if _value(line["value"]) != expected:
                return [*results, False]
        elif "output" in line:
            if differs(line["output"], case.output):
                return [*results, WRONG]
        else:
            return [WRONG]
        results.append(True)
    return results


class _Other:
    """Equal to nothing."""


_UNREADABLE = _Other()


def _expected(case: Case) -> Any:
    try:
        return json.loads(case.output)
    except ValueError:
        return _UNREADABLE


def _value(spelling: Any) -> Any:
    try:
        return inside.decode(spelling)
    except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError):
        return _Other()


def _run(
    sandbox: Sandbox, code: str, inputs: list[str], function: str | None
) -> list[dict[str, Any]]:
    job = {"code": code, "inputs": inputs, "function": function, "seconds": SECONDS}
    limits = Limits(
        seconds=(SECONDS + 1.0) * len(inputs) + 5.0, memory_bytes=MEMORY, output_bytes=64 << 20
    )
    outcome = sandbox.run(_DRIVER.read_text("utf-8"), stdin=json.dumps(job), limits=limits)
    lines = []
    for text in outcome.stdout.splitlines():
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            break  # cut off, or written by the candidate
        if not isinstance(line, dict):
            break
        lines.append(line)
    return lines
