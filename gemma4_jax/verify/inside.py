"""What runs inside the sandbox, before and around a program. Standard library only: it is sent as text.

Here: the limits a process sets itself, and its three roles: run a program to its end; serve calls of a
program's functions; judge them with tests that call a program in another process. And values as JSON
that keep their types, which the outside reads too. Not here: what shuts the sandbox (`bubblewrap.py`,
`confine.py`), and anything worth stealing: a program can read and change all of this in its own process.
"""

import _sitebuiltins
import _socket
import builtins
import os
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object  # importing typing takes longer than Python's own start

_RESERVE = 8 << 20  # of its memory, to print the traceback of a program that filled the rest
_MAX_EXACT = 1 << 63  # larger ints go as hex: Python refuses to read more than 4300 digits


def main() -> None:
    """argv: role, bytes of memory, bytes of a file, seconds of CPU, threads, paths of packages joined
    by ":", and file descriptors: to say "ready", to read the program, and those of the role."""
    role, memory, file_size, cpu, threads, packages, *rest = sys.argv[1:]
    ready, program, *channels = map(int, rest)
    _limit(int(memory), int(file_size), int(cpu), int(threads))
    if packages:
        sys.path += packages.split(":")
        # Numeric libraries keep memory for one thread per core of the machine, beyond the limit.
        os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    sys.argv = ["program.py"]
    # `-S` leaves them out, and programs end themselves with them.
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D")
    with open(program, "rb") as file:
        source = file.read()
    _say_ready(ready)
    if role == "run":
        run(source)
    elif role == "serve":
        serve(source, *channels)
    else:
        judge(source, *channels)


def _limit(memory: int, file_size: int, cpu: int, threads: int) -> None:
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: cpu,
        resource.RLIMIT_FSIZE: file_size,
        resource.RLIMIT_NOFILE: 64,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_SIGPENDING: 64,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_STACK: 64 << 20,
    }
    if threads:
        limits[resource.RLIMIT_NPROC] = threads
    for kind, value in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value - _RESERVE if kind == resource.RLIMIT_AS else value, value))


def _say_ready(ready: int) -> None:
    """With the working directory, whose files are counted from outside: no limit of the kernel does."""
    place = os.open(".", os.O_PATH)  # weakly confined, it may not be read
    descriptor = place.to_bytes(4, sys.byteorder)
    socket = _socket.socket(fileno=ready)
    socket.sendmsg([b"."], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, descriptor)])
    socket.close()
    os.close(place)


def run(source: bytes) -> None:
    """Run a program as Python runs a script."""
    module = _module("__main__")
    whole = (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        try:
            resource.setrlimit(resource.RLIMIT_AS, whole)  # what filled the memory is still there
            _print_traceback(error, {"program.py": source})
        except MemoryError:
            os.write(2, b"\nMemoryError\n")
        raise SystemExit(1) from None


def serve(source: bytes, requests: int, replies: int) -> None:
    """Load a program and say so with an empty line, then answer each line of `requests` with one of `replies`.

    A request is {"function", "arguments"}. The reply: {"value", "arguments"}, the arguments as the call
    left them; or {"error", "message"}.
    """
    import json  # costs a third of Python's own start; programs that only run do without

    loads, dumps, leave = json.loads, json.dumps, os._exit
    module = _module("program")
    failed: BaseException | None = None
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
    except BaseException as error:
        failed = error
    functions: dict[str, Any] = {}
    with open(requests, "rb") as lines, open(replies, "wb") as out:
        out.write(b"\n")
        out.flush()
        for line in lines:
            request = loads(line)
            name, arguments = request["function"], decode(request["arguments"])
            try:
                if failed:
                    raise failed
                if name not in functions:
                    functions[name] = _find(module.__dict__, name)
                value = functions[name](*arguments)
                reply = {"value": encode(value), "arguments": encode(arguments)}
                text = dumps(reply)
            except BaseException as error:
                text = dumps({"error": type(error).__name__, "message": _words(error)})
            out.write(text.encode() + b"\n")
            out.flush()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        leave(0)  # threads that the program left behind end here


def judge(source: bytes, requests: int, replies: int, verdict: int) -> None:
    """Run tests whose functions live in another process; write one line of JSON to `verdict`.

    source: JSON {"preamble", "tests", "functions"}: the preamble runs first, then the functions are put
    in the place of whatever it defined, then the tests run.
    """
    import json

    plan = json.loads(source)
    ended: BaseException | None = None
    # Unbuffered, so that nothing is left to write to a program that is gone.
    with (
        open(requests, "wb", buffering=0) as out,
        open(replies, "rb") as lines,
        open(verdict, "wb") as last,
    ):
        namespace = _module("__main__").__dict__
        try:
            exec(compile(plan["preamble"], "preamble.py", "exec", dont_inherit=True), namespace)
            lines.readline()  # the program is loaded
            for name in plan["functions"]:
                _place(namespace, name, _remote(name, out, lines, json))
            exec(compile(plan["tests"], "tests.py", "exec", dont_inherit=True), namespace)
        except BaseException as error:
            ended = error
        found: dict[str, Any] = {"passed": ended is None}
        if ended is not None:
            found |= {"error": type(ended).__name__, "message": _words(ended)}
            found["line"] = _line_of(ended, plan["tests"])
        last.write(json.dumps(found).encode() + b"\n")


class ProgramEnded(BaseException):
    """The program's process is gone; no `except Exception` of a test shall catch this."""


def _remote(name: str, out: Any, lines: Any, json: Any) -> Any:
    """The function `name` of the program in the other process."""

    def call(*arguments: Any) -> Any:
        request = {"function": name, "arguments": encode(list(arguments))}
        try:
            unsent = memoryview(json.dumps(request).encode() + b"\n")
            while unsent:
                unsent = unsent[out.write(unsent) :]
        except OSError:
            raise ProgramEnded("the program's process ended") from None
        line = lines.readline()
        if not line.endswith(b"\n"):
            raise ProgramEnded("the program's process ended")
        reply = json.loads(line)
        if "error" in reply:
            kind = getattr(builtins, str(reply["error"]), None)
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                kind = RuntimeError
            raise kind(f"{reply['error']}: {reply['message']}")
        for given, left in zip(arguments, decode(reply["arguments"]), strict=True):
            _overwrite(given, left)
        return decode(reply["value"])

    call.__name__ = name
    return call


def _overwrite(given: Any, left: Any) -> None:
    """What a call did to its argument, done to the test's own."""
    if type(given) is not type(left):
        return
    if isinstance(given, list | bytearray):
        given[:] = left
    elif isinstance(given, dict | set):
        given.clear()
        given.update(left)


def _place(namespace: dict[str, Any], name: str, function: Any) -> None:
    head, _, method = name.partition(".")
    if not method:
        namespace[head] = function
        return
    if not isinstance(namespace.get(head), type):
        namespace[head] = type(head, (), {})
    setattr(namespace[head], method, staticmethod(function))


def _find(namespace: dict[str, Any], name: str) -> Any:
    """A function of the program: "name", or "Class.method" of one instance made without arguments."""
    head, _, method = name.partition(".")
    if head not in namespace:
        raise NameError(f"the program defines no {head!r}")
    found = namespace[head]
    if method:
        found = getattr(found() if isinstance(found, type) else found, method)
    return found


def _module(name: str) -> Any:
    """A fresh module in its place: dataclasses and pickle look modules up by name."""
    module = type(sys)(name)
    sys.modules[name] = module
    return module


def _words(error: BaseException) -> str:
    try:
        return str(error)[:1000]
    except BaseException:
        return ""


def _line_of(error: BaseException, tests: str) -> str:
    """The line of the tests that an error came from, "" if none."""
    number, at = 0, error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_filename == "tests.py":
            number = at.tb_lineno
        at = at.tb_next
    lines = tests.splitlines()
    return lines[number - 1].strip()[:1000] if 0 < number <= len(lines) else ""


def _print_traceback(error: BaseException, files: dict[str, bytes]) -> None:
    """As Python prints it, without this file's frames, with the lines of files that are not on disk."""
    import linecache
    import traceback

    for name, source in files.items():
        lines = source.decode("utf-8", "replace").splitlines(keepends=True)
        linecache.cache[name] = (len(source), None, lines, name)
    frames = error.__traceback__.tb_next if error.__traceback__ else None
    traceback.print_exception(type(error), error, frames)


def encode(value: Any) -> Any:
    """A plain value as JSON that keeps its type; TypeError for any other.

    Plain are None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, and numpy's
    arrays and scalars, which become lists and numbers. Their subclasses become themselves.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value) if -_MAX_EXACT < value < _MAX_EXACT else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, set):
        return {"set": [encode(item) for item in value]}
    if isinstance(value, frozenset):
        return {"frozenset": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if type(value).__module__ == "numpy":
        return encode(value.tolist())
    raise TypeError(f"a value of type {type(value).__name__} cannot leave the program")


def decode(value: Any) -> Any:
    """The value that `encode` was given; ValueError or TypeError for what it never makes."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "dict":
        return {decode(key): decode(item) for key, item in inner}
    if kind == "int":
        return int(inner, 16)
    if kind == "complex":
        return complex(*inner)
    if kind in ("bytes", "bytearray"):
        return (bytes if kind == "bytes" else bytearray).fromhex(inner)
    collections = {"tuple": tuple, "set": set, "frozenset": frozenset}
    if kind not in collections:
        raise ValueError(f"unknown kind of value {str(kind)[:40]!r}")
    return collections[kind](decode(item) for item in inner)
