"""One process under watch: its outputs capped as they come, and killed when its time is up.

Here: pipes, clock and death. Not here: what the process may do (`bubblewrap.py`, `confine.py`).
"""

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextvars import ContextVar
from dataclasses import dataclass

_START_SECONDS = 60.0  # to become ready: machines that score are busy
_CHUNK = 1 << 16
# A file in memory costs the kernel about 1 kB that no limit counts, and a program makes 150 000 a second.
_MAX_FILES = 10_000
_GLANCE_SECONDS = 0.05

#: What stops the processes that are watched in a context; `pool.py` sets it.
STOP: ContextVar[threading.Event | None] = ContextVar("STOP", default=None)


@dataclass(frozen=True)
class Ended:
    """How it went. cause: "exit", "timeout" or "output". started: whether it said that it was ready.

    exit_code: as a shell has it, 128 + n after signal n. channel: what came through the extra pipe.
    """

    cause: str
    started: bool
    exit_code: int
    stdout: bytes
    stderr: bytes
    channel: bytes
    seconds: float


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """A descriptor to read `content` from, which nobody who inherits it can change."""
    with os.fdopen(os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb") as file:
        file.write(content)
        file.flush()
        file.seek(0)
        fcntl.fcntl(
            file.fileno(),
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
        )
        yield file.fileno()


@contextlib.contextmanager
def started(
    argv: Sequence[str], *, stdin: int, keep: Sequence[int], quiet: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with an empty environment in a group of its own, killed at the end of the block.

    keep: descriptors that it inherits. quiet: its outputs go nowhere.
    """
    output = subprocess.DEVNULL if quiet else subprocess.PIPE
    process = subprocess.Popen(
        argv,
        stdin=stdin,
        stdout=output,
        stderr=output,
        env={},
        cwd="/",
        pass_fds=keep,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _kill(process)
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def watch(
    process: subprocess.Popen[bytes],
    ready: Sequence[socket.socket],
    *,
    seconds: float,
    output_bytes: int,
    count_files: bool = False,
    channel: int | None = None,
    channel_bytes: int = 0,
    seconds_each: float | None = None,
) -> Ended:
    """Read everything until the process ends, or end it.

    ready: of this process, and of others that run beside it: each sends a byte when it begins, and its
    working directory. The clock starts with the first's. output_bytes: of stdout and stderr each.
    count_files: in those directories; too many are too much output. channel: a further pipe to read.
    seconds_each: between the lines that come through that. Raises CancelledError if `STOP` is set meanwhile.
    """
    assert process.stdout and process.stderr
    stop = STOP.get()
    begun = time.monotonic()
    deadline = last = begun + _START_SECONDS
    caps = {process.stdout.fileno(): output_bytes, process.stderr.fileno(): output_bytes}
    if channel is not None:
        caps[channel] = channel_bytes
    texts = {fd: bytearray() for fd in caps}
    waiting = {each.fileno(): each for each in ready}
    main = ready[0].fileno()
    directories: list[int] = []
    cause = "exit"
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        end = os.pidfd_open(process.pid)  # readable when it ends
        stack.callback(os.close, end)
        for fd in (*caps, *waiting, end):
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map() and cause == "exit":
            events = selector.select(min(max(0.0, deadline - time.monotonic()), _GLANCE_SECONDS))
            now = time.monotonic()
            if stop is not None and stop.is_set():
                raise CancelledError("stopped while a program ran")
            for key, _ in events:
                if key.fd in caps:
                    chunk = os.read(key.fd, _CHUNK)
                    texts[key.fd] += chunk
                    if not chunk:
                        selector.unregister(key.fd)
                    elif len(texts[key.fd]) > caps[key.fd]:
                        cause = "output"
                    elif key.fd == channel and seconds_each is not None and b"\n" in chunk:
                        deadline = min(last, now + seconds_each)
                    continue
                selector.unregister(key.fd)
                if key.fd == end or (directory := _directory(waiting[key.fd])) is None:
                    continue
                del waiting[key.fd]
                directories.append(directory)
                stack.callback(os.close, directory)
                if key.fd == main:
                    begun, last = now, now + seconds
                    deadline = min(last, now + (seconds_each or seconds))
            if count_files and any(_files(directory) > _MAX_FILES for directory in directories):
                cause = "output"
            if now >= deadline and selector.get_map():
                cause = "timeout"
    _kill(process)
    code = process.returncode
    return Ended(
        cause=cause,
        started=main not in waiting and not (waiting and cause == "exit"),
        exit_code=128 - code if code < 0 else code,
        stdout=bytes(texts[process.stdout.fileno()][:output_bytes]),
        stderr=bytes(texts[process.stderr.fileno()][:output_bytes]),
        channel=b"" if channel is None else bytes(texts[channel][:channel_bytes]),
        seconds=time.monotonic() - begun,
    )


def _directory(ready: socket.socket) -> int | None:
    """The directory that comes with the byte; None if the process is gone instead."""
    content, descriptors, _, _ = socket.recv_fds(ready, 1, 1)
    return descriptors[0] if content else None


def _files(directory: int) -> int:
    """How many files there are in the file system of a directory."""
    found = os.fstatvfs(directory)
    return found.f_files - found.f_ffree


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # Not reaped yet, so the number is still this group's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
