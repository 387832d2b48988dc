"""One process under watch: its outputs capped as they come, and killed when its time is up.

Here: pipes, clock and death. Not here: what the process may do (`bubblewrap.py`, `confine.py`).
"""

import contextlib
import fcntl
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_START_SECONDS = 60.0  # to become ready: machines that score are busy
_CHUNK = 1 << 16


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
    ready: int,
    *,
    seconds: float,
    output_bytes: int,
    channel: int | None = None,
    channel_bytes: int = 0,
    seconds_each: float | None = None,
) -> Ended:
    """Read everything until the process ends, or end it.

    ready: it writes a byte there when it begins; the clock starts then. output_bytes: of stdout and stderr
    each. channel: a further pipe to read. seconds_each: between the lines that come through that.
    """
    assert process.stdout and process.stderr
    begun = time.monotonic()
    deadline = last = begun + _START_SECONDS
    caps = {process.stdout.fileno(): output_bytes, process.stderr.fileno(): output_bytes, ready: 1}
    if channel is not None:
        caps[channel] = channel_bytes
    texts = {fd: bytearray() for fd in caps}
    cause = "exit"
    with selectors.DefaultSelector() as selector:
        for fd in caps:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map() and cause == "exit":
            left = deadline - time.monotonic()
            if left <= 0:
                cause = "timeout"
                break
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, _CHUNK)
                texts[key.fd] += chunk
                now = time.monotonic()
                if not chunk or key.fd == ready:
                    selector.unregister(key.fd)
                if chunk and key.fd == ready:
                    begun = now
                    last = begun + seconds
                    deadline = last if seconds_each is None else min(last, now + seconds_each)
                elif key.fd == channel and b"\n" in chunk and seconds_each is not None:
                    deadline = min(last, now + seconds_each)
                if len(texts[key.fd]) > caps[key.fd]:
                    cause = "output"
    if cause == "exit":
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            cause = "timeout"
    _kill(process)
    code = process.returncode
    out, err = (
        bytes(texts[pipe.fileno()][:output_bytes]) for pipe in (process.stdout, process.stderr)
    )
    return Ended(
        cause=cause,
        started=bool(texts[ready]),
        exit_code=128 - code if code < 0 else code,
        stdout=out,
        stderr=err,
        channel=bytes(texts[channel][:channel_bytes]) if channel is not None else b"",
        seconds=time.monotonic() - begun,
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # Not reaped yet, so the number is still this group's.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
