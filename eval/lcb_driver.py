"""LiveCodeBench's way of running a candidate, with its quirks. A script: it runs alone, inside the sandbox.

It reads one JSON object on stdin (code, inputs, function, seconds) and writes one JSON line per
test on what was stdout. Expected outputs are never here: the reference compares in this same process,
where a candidate can find them. Behaviour follows lcb_runner/evaluation/testing_util.py (MIT), by reading;
`eval/lcb_official.py` names the quirks. No import of this repository.
"""

import ast
import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections import UserDict
from decimal import Decimal
from fractions import Fraction
from io import StringIO
from numbers import Integral
from types import MappingProxyType, ModuleType
from typing import Any
from unittest.mock import mock_open, patch

# What stands before every candidate: all names of these modules, in this order, then the modules themselves.
STARRED = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools "
    "operator io sys json builtins typing"
)
PRELUDE = "\n".join(
    [f"from {name} import *" for name in STARRED.split()]
    + [f"import {name}" for name in STARRED.split()[:-2]]
    + ["sys.setrecursionlimit(50000)", ""]
)
MAIN = "__name__ == '__main__'"

# What the reference takes away from candidates; programs that use these fail there.
NO_OS = (
    "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename renames "
    "truncate replace unlink fchmod fchown chmod chown chroot lchflags lchmod lchown getcwd chdir"
)
NO_MODULES = "ipdb joblib resource psutil tkinter"
DEEPEST = 200  # nesting of a returned value; beyond it nothing is compared


class TimeoutException(Exception):
    """The name matters: the reference tells a timeout by it."""


class Lines:
    """The stdin of a candidate. `read` gives all of it every time; it cannot be iterated over."""

    def __init__(self, text: str):
        self.text = text
        self.lines = StringIO(text)
        self.buffer = Bytes(text)

    def read(self, *args: Any) -> str:
        return self.text

    def readlines(self, *args: Any) -> list[str]:
        return self.text.split("\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lines, name)


class Bytes:
    """Its `buffer`: `readline` gives line 1 for ever."""

    def __init__(self, text: str):
        self.bytes = text.encode()

    def read(self, *args: Any) -> bytes:
        return self.bytes

    def readline(self, *args: Any) -> bytes:
        return self.bytes.split(b"\n")[0] + b"\n"


def without_main_guard(code: str) -> str:
    """A last `if __name__ == '__main__':` becomes its body."""
    try:
        tree = ast.parse(code)
        last = tree.body[-1]
        if isinstance(last, ast.If) and ast.unparse(last.test).strip() == MAIN:
            top = ast.Module(body=tree.body[:-1], type_ignores=[])
            inner = ast.Module(body=last.body, type_ignores=[])
            return f"{ast.unparse(top)}\n{ast.unparse(inner)}"
    except Exception:
        pass  # what does not parse fails later, with its own message
    return code


def as_function(code: str) -> str:
    """The program as one function: its imports stay at the top, everything else becomes local."""
    try:
        body = ast.parse(code).body
        imports = [s for s in body if isinstance(s, ast.Import | ast.ImportFrom)]
        rest = [s for s in body if not isinstance(s, ast.Import | ast.ImportFrom)]
        wrapped = ast.parse("def wrapped_function(): pass").body[0]
        assert isinstance(wrapped, ast.FunctionDef)
        wrapped.body = rest  # empty, it stays a syntax error, as there
        top = ast.Module(body=list(imports), type_ignores=[])
        return f"{PRELUDE}\n{ast.unparse(top)}\n{ast.unparse(wrapped)}"
    except Exception:
        return code


def load(code: str, seconds: int) -> Any:
    """Execute the source; an instance of its `Solution` if the word is anywhere in it, else its module."""
    signal.alarm(seconds)
    try:
        module = ModuleType("tmp_sol")
        exec(code, module.__dict__)
        return module.__dict__["Solution"]() if "class Solution" in code else module
    finally:
        signal.alarm(0)


def guard() -> None:
    """Take away what the reference takes away. No protection: that is the sandbox."""
    import builtins

    for name in ("quit", "help"):
        setattr(builtins, name, None)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in NO_OS.split():
        setattr(os, name, None)
    for name in ("rmtree", "move", "chown"):
        setattr(shutil, name, None)
    subprocess.Popen = None  # type: ignore[assignment, misc]
    for name in NO_MODULES.split():
        sys.modules[name] = None  # type: ignore[assignment]


def printed(method: Any, text: str, seconds: int) -> str:
    """What the wrapped program writes, given its stdin. `exit()` ends it quietly."""
    output, lines = StringIO(), iter(text.split("\n"))
    output.close = lambda x: 1  # type: ignore[method-assign, misc, assignment]
    real = sys.stdout
    signal.alarm(seconds)
    sys.stdout = output
    try:
        with (
            # The order is the reference's: these three end up on the real stdin, for whoever has it by name.
            patch("sys.stdin.read", lambda *args: text),
            patch("sys.stdin.readlines", lambda *args: text.split("\n")),
            patch("sys.stdin.readline", lambda *args: next(lines)),
            patch("sys.stdin", Lines(text)),
            patch("builtins.open", mock_open(read_data=text)),
            contextlib.suppress(SystemExit),
        ):
            method()
        return output.getvalue()
    finally:
        signal.alarm(0)
        sys.stdout = real


def returned(method: Any, arguments: list[Any], seconds: int) -> Any:
    """What the function returns, spelt for JSON."""
    signal.alarm(seconds)
    try:
        value = method(*arguments)
        signal.alarm(0)
        return spelt(list(value) if isinstance(value, tuple) else value)
    finally:
        signal.alarm(0)


def spelt(value: Any, depth: int = 0) -> Any:
    """A value as `verify.inside.decode` reads it; {"other": ...} for what equals nothing of JSON's."""
    if isinstance(value, Fraction | Decimal) and math.isfinite(value):
        # Equal to a whole number or a float, if to anything here.
        value = int(value) if value == int(value) else float(value)
    if isinstance(value, complex) and value.imag == 0:
        value = value.real
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        return {"int": hex(int(value))}
    if depth < DEEPEST and isinstance(value, list):
        return [spelt(v, depth + 1) for v in value]
    if depth < DEEPEST and isinstance(value, tuple):
        return {"tuple": [spelt(v, depth + 1) for v in value]}
    if depth < DEEPEST and isinstance(value, dict | UserDict | MappingProxyType):
        return {"dict": [[spelt(k, depth + 1), spelt(v, depth + 1)] for k, v in value.items()]}
    return {"other": type(value).__name__}


def out_of_time(number: int, frame: Any) -> None:
    """SIGALRM: the message lands in the candidate's output, as it does there."""
    print("timeout occured: alarm went off")
    raise TimeoutException


def main() -> None:
    """One candidate, all its tests, until one of them raises."""
    job = json.load(sys.stdin)
    report = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)

    def say(**line: Any) -> None:
        report.write(json.dumps(line) + "\n")
        report.flush()

    sys.set_int_max_str_digits(50_000)
    signal.signal(signal.SIGALRM, out_of_time)
    seconds, function = job["seconds"], job["function"]
    guard()
    try:
        if function:
            loaded = load(f"{PRELUDE}\n\n{job['code']}", seconds)
            method = getattr(loaded, function)
            inputs: list[Any] = [
                [json.loads(line) for line in text.split("\n")] for text in job["inputs"]
            ]
        else:
            loaded = load(as_function(without_main_guard(job["code"])), seconds)
            method = loaded.wrapped_function
            inputs = job["inputs"]
    except Exception as error:
        say(load=f"{type(error).__name__}: {error}"[:300])
        return
    for given in inputs:
        try:
            if function:
                say(value=returned(method, given, seconds))
            else:
                say(output=printed(method, given, seconds))
        except Exception as error:
            late = "timeoutexception" in repr(error).lower()
            say(late=late, error=repr(error)[:300])
            return
    say(end=True)


if __name__ == "__main__":
    main()
