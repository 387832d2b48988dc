"""A sweep that is killed again and again: `python -m tests.eval.drill KILLS SEED STORE WORDS...`.

Every attempt is a process of its own that loads a model, makes an engine and generates, and SIGKILL ends it
at a random moment. It is forked from this one, which has imported everything and used nothing: 20 times
importing jax would be most of the test. Prints one JSON line: what the file held at each kill.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import orbax.checkpoint  # noqa: F401

import eval.engine_source
import eval.evaluate  # noqa: F401
import gemma4_jax.checkpoint
import gemma4_jax.sample.engine
import gemma4_jax.sample.engine_programs  # noqa: F401
from eval import sweep
from tests.eval.small_tasks import TASKS


def attempt(words: list[str]) -> int:
    """Start a sweep; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        log = os.open(os.environ["DRILL_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = sweep.main(words, TASKS)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def lines(store: Path) -> int:
    return store.read_bytes().count(b"\n") if store.exists() else 0


def main() -> None:
    kills, seed, path, *words = sys.argv[1:]
    chance, store, held = random.Random(int(seed)), Path(path), []
    total = int(os.environ["DRILL_TOTAL"])
    for number in range(int(kills)):
        child, begin = attempt(words), lines(store)
        # So many answers later, and a moment more: in the middle of a step, of a line, of scoring.
        rest = (total - begin) // max(1, int(kills) - number)
        wanted = begin + chance.randint(0, 2 * rest)
        # A few die earlier: while the model loads or programs are read.
        deadline = time.monotonic() + (chance.uniform(0, 2.0) if number % 7 == 6 else 300)
        ended = 0
        while not ended and lines(store) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
            ended, _ = os.waitpid(child, os.WNOHANG)
        time.sleep(chance.uniform(0, 0.03))
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFSIGNALED(status):
                held.append(store.read_bytes().decode() if store.exists() else "")
        if number % 3 == 1 and store.exists():
            with store.open("ab") as file:  # what a write that was cut short would leave
                file.write(b'{"key": "torn", "task": "has_' + b"a" * chance.randint(0, 40))
    _, status = os.waitpid(attempt(words), 0)
    print(json.dumps({"code": os.waitstatus_to_exitcode(status), "held": held}))


if __name__ == "__main__":
    main()
