"""What the demos' command lines share: flags, how a run ends, training that is done only once."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from gemma4_jax.errors import UserError, report_user_errors

_AGAIN = "stopped; the same command goes on from here"


class Demo(Protocol):
    """Everything a demo does, in `path`; fresh: start over there."""

    def __call__(self, seed: int, path: Path, *, fresh: bool) -> object: ...


class Stopped(Exception):
    """A training run ended for a signal, having saved; `code` is the exit code to pass on."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def command_line(
    prog: str, about: str, workdir: str, demo: Demo, argv: Sequence[str] | None
) -> int:
    """Read the flags and run; returns the exit code. A user's mistake leaves with 2."""
    parser = argparse.ArgumentParser(prog=prog, description=about, allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, default=Path(workdir), help=f"default: {workdir}")
    parser.add_argument("--fresh", action="store_true", help="delete an earlier demo there first")
    parser.add_argument("--seed", type=int, default=0, help="of everything random; default: 0")
    arguments = parser.parse_args(argv)
    with report_user_errors():
        if not 0 <= arguments.seed < 2**30:
            raise UserError(f"--seed is {arguments.seed}; it must be from 0 to {2**30 - 1}")
        try:
            demo(arguments.seed, arguments.workdir, fresh=arguments.fresh)
        except Stopped as stop:
            print(_AGAIN)
            return stop.code
        except KeyboardInterrupt:
            print(f"\n{_AGAIN}")
            return 130
    return 0


def train_once(workdir: str, train: Callable[[], int], say: Callable[[str], None]) -> None:
    """Run `train`, which goes on from its newest checkpoint; once it has finished, never again.

    Raises Stopped if a signal ended it.
    """
    mark = Path(workdir) / "finished"
    if mark.exists():
        say(f"  finished before: {workdir}")
        return
    if code := train():
        raise Stopped(code)
    mark.touch()
