"""Programs that a model wrote, run where they can do no harm.

    Sandbox().run("print(int(input()) + 1)", stdin="41").stdout                     # "42\\n"
    Sandbox().call("def f(x): return x + 1", "f", [[41]]).results[0].value          # 42
    Sandbox().test("def f(x): return x + 1", "assert f(41) == 42", ["f"]).passed    # True

Here: the three ways to run one, and the limits. What a caller expects never enters the process of the
program: `run` and `call` return what came out, and tests run in a second sandbox that asks the first for
each value. All may be called from several threads at once; `pool.py` has them. How programs are kept in,
and what each way of isolation stops: docs/sandbox.md.
"""

import contextlib
import functools
import json
import math
import os
import re
import site
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Literal

from gemma4_jax.errors import UserError, unknown
from gemma4_jax.verify import bubblewrap, inside, process, seccomp

_RESULT_BYTES = 16 << 20  # of all results of one `call`
_HERE = Path(__file__).parent
_MEMORY_ERROR = re.compile(r"^[\w.]*MemoryError\b")
_TIME_SIGNAL = 128 + 24  # SIGXCPU

Status = Literal["ok", "failed", "timeout", "output", "memory", "signal"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use. seconds: wall clock, from when it begins; output_bytes: of stdout and
    stderr each; disk_bytes: of all that it writes to its own small directory."""

    seconds: float = 10.0
    memory_bytes: int = 1 << 30
    output_bytes: int = 64 << 10
    disk_bytes: int = 16 << 20

    def __post_init__(self) -> None:
        if self.memory_bytes < 64 << 20:
            raise UserError(f"memory_bytes {self.memory_bytes} is less than Python's own 64 MiB")
        if not (0 < self.seconds < math.inf and self.output_bytes > 0 and self.disk_bytes >= 4096):
            raise UserError(f"limits must be finite and above 0 (disk: 4096), got {self}")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended. status: "ok" (exit code 0), "failed", "timeout", "output" (too much of it),
    "memory", "signal".

    exit_code: 128 + n after signal n. seconds: wall clock. "ok" says nothing about being right: a
    program can end itself with 0 anywhere.
    """

    status: Status
    exit_code: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one call gave. value: plain data, tuples and sets as such; None if there is an `error`.

    error: "" or why there is no value: the exception ("ValueError: ..."), or the status of the outcome
    where the program did not live to answer.
    """

    value: Any = None
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """Of `Sandbox.call`: one result per list of arguments, and how the process ended."""

    results: tuple[Result, ...]
    outcome: Outcome


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Of `Sandbox.test`. note: why not passed, with the line of the tests; "" if passed."""

    passed: bool
    note: str
    outcome: Outcome


@dataclass(frozen=True)
class _Child:
    """A sandbox that was started. ready: says so when it has begun."""

    process: subprocess.Popen[bytes]
    ready: socket.socket


@dataclass(frozen=True, kw_only=True)
class Sandbox:
    """How programs are kept in. limits: unless a call gives its own.

    isolation: "bubblewrap"; or "weak", which needs nothing but Linux and says on stderr, once, what it lacks.
    packages: False for the standard library alone; True for those installed where this runs; or
    directories to import from, which the program can read.
    """

    limits: Limits = Limits()
    isolation: Literal["bubblewrap", "weak"] = "bubblewrap"
    packages: bool | tuple[Path, ...] = False

    def __post_init__(self) -> None:
        if self.isolation not in ("bubblewrap", "weak"):
            raise unknown("isolation", self.isolation, ("bubblewrap", "weak"))

    def run(self, program: str, stdin: str = "", limits: Limits | None = None) -> Outcome:
        """Run a Python program to its end. Raises UserError where no sandbox can be made."""
        limits = limits or self.limits
        with contextlib.ExitStack() as stack:
            child = self._start(stack, "run", program, limits, stdin=stdin)
            return _outcome(self._watch(child, limits))

    def call(
        self,
        program: str,
        function: str,
        arguments: Sequence[Sequence[Any]],
        limits: Limits | None = None,
        seconds_each: float | None = None,
    ) -> Calls:
        """Call a program's function on each list of arguments, in one process, one after another.

        function: its name, or "Class.method" for one object of a class made without arguments.
        arguments: plain data. seconds_each: for each call, and for loading the program, beside
        `limits.seconds` for all. A call that raises does not stop the next; one that takes too long does.
        """
        limits = limits or self.limits
        requests = [
            json.dumps({"function": function, "arguments": inside.encode(list(each))})
            for each in arguments
        ]
        with contextlib.ExitStack() as stack:
            asked = stack.enter_context(_file("".join(f"{line}\n" for line in requests)))
            replies, answer = _pipe(stack)
            keep = (asked, answer.fileno())
            child = self._start(stack, "serve", program, limits, keep=keep)
            answer.close()
            ended = self._watch(child, limits, channel=replies, seconds_each=seconds_each)
        outcome = _outcome(ended)
        _, *lines = ended.channel.split(b"\n")  # the first says that the program is loaded
        results = [_result(line) for line in lines[:-1]]
        missing = "ended early" if outcome.status == "ok" else outcome.status
        results += [Result(error=missing)] * len(requests)
        return Calls(results=tuple(results[: len(requests)]), outcome=outcome)

    def test(
        self,
        program: str,
        tests: str,
        functions: Sequence[str],
        limits: Limits | None = None,
        preamble: str = "",
    ) -> Tested:
        """Whether tests (Python that raises nothing if all is well) pass on a program's functions.

        functions: those of the program that the tests use, named as for `call`; their arguments and
        values must be plain data. preamble: what the tests need beside them; it runs before `functions` are put
        into their place. Program and tests have `limits` each.
        """
        limits = limits or self.limits
        plan = {"preamble": preamble, "tests": tests, "functions": list(functions)}
        with contextlib.ExitStack() as stack:
            asked, ask = _pipe(stack)
            replies, answer = _pipe(stack)
            verdict, say = _pipe(stack)
            keep: tuple[int, ...] = (asked.fileno(), answer.fileno())
            of_program = self._start(stack, "serve", program, limits, keep=keep, quiet=True)
            keep = (ask.fileno(), replies.fileno(), say.fileno())
            of_tests = self._start(stack, "judge", json.dumps(plan), limits, keep=keep)
            for end in (asked, ask, replies, answer, say):
                end.close()
            ended = self._watch(of_tests, limits, channel=verdict, beside=of_program)
        outcome = _outcome(ended)
        found = _parsed(ended.channel)
        if found.get("passed") is True and outcome.status == "ok":
            return Tested(passed=True, note="", outcome=outcome)
        note = f"{found['error']}: {found.get('message')}" if "error" in found else outcome.status
        where = f" at {found['line']!r}" if found.get("line") else ""
        return Tested(passed=False, note=note + where, outcome=outcome)

    def _start(
        self,
        stack: contextlib.ExitStack,
        role: str,
        source: str,
        limits: Limits,
        *,
        stdin: str = "",
        keep: Sequence[int] = (),
        quiet: bool = False,
    ) -> _Child:
        """Start `inside.py` in a role; `keep` are the role's descriptors."""
        if sys.platform != "linux":
            raise UserError(f"there is no sandbox on {sys.platform}; run programs on Linux")
        ready, begun = map(stack.enter_context, socket.socketpair())
        program, given = (stack.enter_context(_file(text)) for text in (source, stdin))
        weak = self.isolation == "weak"
        filter_ = stack.enter_context(process.memory_file(seccomp.filter_bytes(weak)))
        packages = _directories(self.packages)
        readable = [Path(sys.base_prefix), Path(sys.base_exec_prefix), *packages]
        arguments = [role, str(limits.memory_bytes), str(limits.disk_bytes)]
        arguments += [str(math.ceil(limits.seconds) + 1), str(0 if weak else bubblewrap.threads())]
        arguments += [":".join(map(str, packages)), str(begun.fileno()), str(program)]
        arguments += map(str, keep)
        # The one below a virtual environment, whose own may be a copy that finds its library only there.
        base = sys._base_executable  # type: ignore[attr-defined]
        python = [os.path.realpath(base), "-I", "-S", "-B", "-X", "utf8", "-c"]
        inherited = [begun.fileno(), program, filter_, *keep]
        if weak:
            _say_what_is_lacking()
            places = ":".join(["/usr", "/lib", "/lib64", *map(str, readable)])
            argv = [*python, _code(weak), str(os.getpid()), places, str(filter_), *arguments]
        else:
            again = stack.enter_context(_file(stdin))
            inherited.append(again)
            argv = bubblewrap.command(
                [*python, _code(weak), *arguments],
                readable=readable,
                disk_bytes=limits.disk_bytes,
                seccomp=filter_,
                stdin=again,
            )
        started = process.started(argv, stdin=given, keep=inherited, quiet=quiet)
        child = _Child(stack.enter_context(started), ready)
        begun.close()
        return child

    def _watch(
        self,
        child: _Child,
        limits: Limits,
        channel: FileIO | None = None,
        seconds_each: float | None = None,
        beside: _Child | None = None,
    ) -> process.Ended:
        ended = process.watch(
            child.process,
            [each.ready for each in (child, beside) if each],
            seconds=limits.seconds,
            output_bytes=limits.output_bytes,
            count_files=self.isolation == "bubblewrap",
            channel=None if channel is None else channel.fileno(),
            channel_bytes=_RESULT_BYTES,
            seconds_each=seconds_each,
        )
        if not ended.started:
            raise self._broken(ended.stderr.decode("utf-8", "replace"))
        return ended

    def _broken(self, stderr: str) -> UserError:
        if self.isolation == "bubblewrap":
            return bubblewrap.failed(stderr)
        said = (stderr.strip().splitlines() or ["it said nothing"])[-1]
        return UserError(
            f"no weak sandbox can be made here: {said}; run programs on another machine"
        )


def _outcome(ended: process.Ended) -> Outcome:
    stderr = ended.stderr.decode("utf-8", "replace")
    status: Status
    if ended.cause == "output":
        status = "output"
    elif ended.cause == "timeout" or ended.exit_code == _TIME_SIGNAL:
        status = "timeout"
    elif ended.exit_code == 0:
        status = "ok"
    elif _MEMORY_ERROR.match((stderr.strip().splitlines() or [""])[-1]):
        status = "memory"
    else:
        status = "signal" if 128 < ended.exit_code <= 128 + 64 else "failed"
    return Outcome(
        status=status,
        exit_code=ended.exit_code,
        stdout=ended.stdout.decode("utf-8", "replace"),
        stderr=stderr,
        seconds=ended.seconds,
    )


def _result(line: bytes) -> Result:
    """What a program's process answered; it may have written anything."""
    reply = _parsed(line)
    if "error" in reply:
        return Result(error=f"{reply['error']}: {reply.get('message', '')}"[:1200])
    try:
        return Result(value=inside.decode(reply["value"]))
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return Result(error="an answer that cannot be read")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _directories(packages: bool | tuple[Path, ...]) -> list[Path]:
    if packages is True:
        return [Path(path) for path in site.getsitepackages() if os.path.isdir(path)]
    return [path.absolute() for path in packages or ()]


def _file(text: str) -> AbstractContextManager[int]:
    # Models write half characters; no program means them.
    return process.memory_file(text.encode("utf-8", "replace"))


def _pipe(stack: contextlib.ExitStack) -> tuple[FileIO, FileIO]:
    """Both ends, closed with the stack at the latest."""
    read, write = os.pipe()
    return (
        stack.enter_context(os.fdopen(read, "rb", buffering=0)),
        stack.enter_context(os.fdopen(write, "wb", buffering=0)),
    )


@functools.cache
def _code(weak: bool) -> str:
    """What Python runs inside."""
    code = (_HERE / "inside.py").read_text() + "\nmain()\n"
    return (_HERE / "confine.py").read_text() + "\nconfine()\n" + code if weak else code


@functools.cache
def _say_what_is_lacking() -> None:
    print(
        'warning: isolation="weak": programs share this machine\'s processes, clock and, without '
        "landlock, its readable files; for model output use bubblewrap (docs/sandbox.md)",
        file=sys.stderr,
    )
