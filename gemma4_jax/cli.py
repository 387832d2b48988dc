"""The command line `gemma4`: which commands there are, and how any of them ends.

A command is a module of `commands/` with `add_arguments(parser)` and `run(arguments)`. Only the one that
is called is imported, and it imports jax when it runs: --help answers at once. Whatever a user can cause
is one line on stderr and exit code 2; Ctrl-C and a closed pipe end quietly.
"""

import argparse
import contextlib
import difflib
import importlib
import io
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from gemma4_jax.errors import UserError, report_user_errors, unknown

COMMANDS = {
    "generate": "answer one message, or continue a text",
    "chat": "talk to a model",
    "convert": "a Hugging Face folder to one of ours, and back",
    "plan": "what a model costs: parameters, FLOPs, memory, time limits",
    "data": "what training would see of a data set",
}
INTERRUPTED, PIPE_CLOSED = 130, 141  # what shells report for SIGINT and SIGPIPE


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are `UserError`s, with the nearest flag for a misspelt one."""

    def __init__(self, **settings: Any) -> None:
        self._flags: list[str] = []
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **settings
        )

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """As in argparse."""
        self._flags += [name for name in names if name.startswith("--")]
        return super().add_argument(*names, **settings)

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The words' meaning. An unknown flag is found first: argparse would take its value for a
        positional argument and complain about that."""
        for word in words:
            if word == "--":
                break
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in self._flags and " " not in flag:
                near = difflib.get_close_matches(flag, self._flags, n=1, cutoff=0.5)
                self.error(f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else ""))
        if self._subparsers is not None:
            return self.parse_args(words)
        # Flags may stand between arguments of which the last may be left out: `generate MODEL --think PROMPT`.
        # argparse does that, but not where "--" says that what follows are no flags: names stand for those.
        words = list(words)
        end = words.index("--") if "--" in words else len(words)
        named = {f"\0{i}": word for i, word in enumerate(words[end + 1 :])}
        found = self.parse_intermixed_args([*words[:end], *named])
        for name, value in vars(found).items():
            if isinstance(value, str) and value in named:
                setattr(found, name, named[value])
        return found

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message} (all flags: {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command. argv: the words after `gemma4`, by default the process's own.

    Leaves with exit code 2 after a user's mistake, 130 after Ctrl-C, 141 if the reader went away.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    with _quiet_endings(), report_user_errors(), _notes_on_stderr():
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(
                    errors="replace"
                )  # a terminal without UTF-8 must not end an answer
        _dispatch(words)
        sys.stdout.flush()  # here, where a closed pipe is still caught


def _dispatch(words: list[str]) -> None:
    if not words:
        raise UserError(f"no command (known: {', '.join(COMMANDS)}; help: gemma4 --help)")
    name, *rest = words
    if name in ("-h", "--help"):
        print(_overview())
    elif name == "--version":
        from gemma4_jax import __version__

        print(f"gemma4_jax {__version__}")
    elif name not in COMMANDS:
        raise unknown("command", name, COMMANDS)
    else:
        command = importlib.import_module(f"gemma4_jax.commands.{name}")
        parser = CommandParser(prog=f"gemma4 {name}", description=command.__doc__)
        command.add_arguments(parser)
        command.run(parser.read(rest))


def _overview() -> str:
    lines = ["usage: gemma4 COMMAND ...", "", "commands:"]
    lines += [f"  {name:<10}{about}" for name, about in COMMANDS.items()]
    lines += ["", "Arguments of a command: gemma4 COMMAND --help", "Version: gemma4 --version"]
    return "\n".join(lines)


@contextlib.contextmanager
def _quiet_endings() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        # The interpreter flushes stdout once more as it ends: let it flush to nowhere.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None


@contextlib.contextmanager
def _notes_on_stderr() -> Iterator[None]:
    """Show what the library logs (towers that were skipped, ...) for as long as a command runs."""
    logger = logging.getLogger("gemma4_jax")
    handler, level = logging.StreamHandler(sys.stderr), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
