"""Signals, in a process of its own."""

import signal
import subprocess
import sys

import pytest

_STUBBORN = """
import os, signal, sys, time
from eval.stopping import resumable
ignored = sys.argv[2] == "ignored"
signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
with resumable():
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.2)
    except BaseException:
        print("swallowed")
print("went on")
"""


def run(repository, number, state="default"):
    words = [sys.executable, "-c", _STUBBORN, str(int(number)), state]
    done = subprocess.run(
        words, cwd=repository, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_process_whatever_swallows_exceptions(repository, number, code):
    assert run(repository, number) == (
        code,
        "",
        "\nstopped; the same command goes on from here\n",
    )


def test_what_is_ignored_stays_ignored(repository):
    """As in a command that a shell starts in the background."""
    assert run(repository, signal.SIGINT, "ignored") == (0, "went on\n", "")
