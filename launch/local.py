"""Several processes of this machine as one run: `python -m launch.local --processes 2 -- train.sft tiny`.

The first one's output is shown as it is, errors of the others with their number. A signal reaches all; when one
fails, the others are told to end. Not here: what the processes agree on (gemma4_jax/distributed.py).
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from launch.command import ROOT, Parser, at_least_one, read_run, split

# Seconds that processes have to end after one failed.
_PATIENCE = 60


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    prog = "python -m launch.local"
    own, words = split(argv)
    parser = Parser(prog=prog, description="A run of several processes on this machine.")
    parser.add_argument("--processes", type=at_least_one, default=2, metavar="N")
    parser.add_argument(
        "--port", type=at_least_one, help="of the first process; default: a free one"
    )
    parser.add_argument("--one-gpu-each", action="store_true", help="process n sees GPU n alone")
    parser.add_argument("--dry-run", action="store_true", help="show the commands, and do nothing")
    options = parser.parse_args(own)
    run = read_run(prog, words)
    port = options.port or free_port()
    variables = [
        environment(index, options.processes, port, options.one_gpu_each)
        for index in range(options.processes)
    ]
    if options.dry_run:
        for names in variables:
            print(*(f"{name}={value}" for name, value in names.items()), run.shell)
        return 0
    return together([sys.executable, "-u", "-m", *run.words], variables)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
        return port


def environment(index: int, count: int, port: int, one_gpu_each: bool) -> dict[str, str]:
    """Variables that tell a process who it is."""
    names = {
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
    }
    return names | ({"CUDA_VISIBLE_DEVICES": str(index)} if one_gpu_each else {})


def together(command: Sequence[str], variables: Sequence[dict[str, str]]) -> int:
    """Run the command once for each environment; returns the exit code of the first that failed, else 0."""
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | names,
            stdout=None if index == 0 else subprocess.PIPE,
            stderr=subprocess.STDOUT if index else None,
            text=True,
        )
        for index, names in enumerate(variables)
    ]
    lines = [
        threading.Thread(target=_relay, args=(index, process.stdout), daemon=True)
        for index, process in enumerate(processes)
        if process.stdout is not None
    ]
    for thread in lines:
        thread.start()

    def pass_on(number: int, frame: object) -> None:
        _signal(processes, signal.Signals(number))

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    code = _wait(processes)
    for thread in lines:
        thread.join(timeout=5)
    return code


def _relay(index: int, stream: IO[str]) -> None:
    for line in stream:
        print(f"[{index}] {line}", end="", file=sys.stderr, flush=True)


def _wait(processes: Sequence[subprocess.Popen[str]]) -> int:
    code, deadline = 0, float("inf")
    while None in (codes := [process.poll() for process in processes]):
        failed = [found for found in codes if found]
        if failed and not code:
            # Those that were told to stop as well end by themselves.
            code, deadline = failed[0], time.monotonic() + _PATIENCE
            _signal(processes, signal.SIGTERM)
        if time.monotonic() > deadline:
            _signal(processes, signal.SIGKILL)
        time.sleep(0.05)
    code = code or next((found for found in codes if found), 0)
    return 128 - code if code < 0 else code


def _signal(processes: Sequence[subprocess.Popen[str]], number: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


if __name__ == "__main__":
    raise SystemExit(main())
