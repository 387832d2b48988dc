"""What launchers share: the run after `--`, and plans of files and commands that can be shown or carried out.

Not here: what a cluster wants to be told (slurm.py, gke.py), processes of this machine (local.py).
"""

import argparse
import dataclasses
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from configs import cli, dpo, sft
from configs.schema import AnyConfig

ROOT = Path(__file__).resolve().parent.parent
#: What can be launched: module -> its presets.
RUNS: Mapping[str, Mapping[str, Callable[[], AnyConfig]]] = {
    "train.sft": sft.PRESETS,
    "train.dpo": dpo.PRESETS,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A training run by its words: `train.sft PRESET --a.b value`."""

    words: tuple[str, ...]

    @property
    def shell(self) -> str:
        """The command, quoted for a shell. The interpreter is the one that is first on the PATH there."""
        return shlex.join(["python", "-u", "-m", *self.words])


def read_run(prog: str, words: Sequence[str]) -> Run:
    """The run that the words after `--` ask for; leaves with one line and exit code 2 if it would not start."""
    if not words:
        cli.fail(f"no run given; after the launcher's own flags: {prog} ... -- train.sft PRESET")
    module, *rest = words
    if module not in RUNS:
        cli.fail(f"cannot launch {module!r}; known: {', '.join(RUNS)}")
    cli.parse(f"python -m {module}", RUNS[module], rest)
    return Run(words=tuple(words))


def split(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(words before `--`, words after it)."""
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Files to write, then commands to run, in order. files: by path, whole contents."""

    files: Mapping[Path, str] = dataclasses.field(default_factory=dict)
    commands: Sequence[Sequence[str]] = ()

    def show(self) -> str:
        """What `carry_out` would do, for people."""
        parts = [f"# {path}\n{text}" for path, text in self.files.items()]
        parts += [f"$ {shlex.join(command)}\n" for command in self.commands]
        return "\n".join(parts)

    def carry_out(self) -> int:
        """Write and run; returns the exit code of the first command that fails, else 0."""
        for path, text in self.files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for command in self.commands:
            print(f"$ {shlex.join(command)}", flush=True)
            try:
                done = subprocess.run(command, check=False)
            except FileNotFoundError:
                cli.fail(f"{command[0]!r} is not installed here; --dry-run shows what it would run")
            if done.returncode:
                return done.returncode
        return 0


def valid_name(text: str) -> str:
    """A name that SLURM, Kubernetes and file systems take."""
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be at most 40 of a-z, 0-9 and -, from a letter to a letter or digit"
        )
    return text


def at_least_one(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


class Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are one line."""

    def error(self, message: str) -> NoReturn:
        """Print `error: message` and leave with exit code 2."""
        cli.fail(f"{message} (help: {self.prog} --help)")


def cluster_parser(prog: str, description: str) -> Parser:
    """A parser of `ACTION --name NAME --dry-run`."""
    parser = Parser(prog=prog, description=description)
    actions = {
        "submit": "start the run",
        "tail": "follow its output",
        "status": "what the cluster says of it",
        "stop": "end it; it saves first",
        "resume": "start it again where it stopped",
    }
    texts = "; ".join(f"{name}: {text}" for name, text in actions.items())
    parser.add_argument("action", choices=list(actions), metavar="ACTION", help=texts)
    parser.add_argument("--name", type=valid_name, required=True, help="of the job")
    parser.add_argument("--folder", type=Path, default=Path("runs/jobs"), help="for its files")
    parser.add_argument(
        "--dry-run", action="store_true", help="show what would be written and run, and do nothing"
    )
    return parser


def finish(plan: Plan, dry_run: bool) -> int:
    """Show or carry out; returns the exit code."""
    if dry_run:
        print(plan.show())
        return 0
    return plan.carry_out()
