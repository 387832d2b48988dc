"""Several models or ways to ask on the same benchmarks: `python -m eval.sweep PRESET --checkpoints A B [--a.b
value]`.

Models are folders, quoted globs of folders, or folders of training runs (each of their checkpoints). One
folder keeps it all; the same command continues it, and with one checkpoint more it adds that one.
"""

import glob
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from configs import cli, evals
from configs.evals import SweepConfig
from eval.run import carry_out, known, source_of

if TYPE_CHECKING:
    from eval.backend import Source
    from eval.engine_source import EngineSource
    from eval.task import Task


def main(argv: Sequence[str] | None = None, tasks: "Mapping[str, Task] | None" = None) -> int:
    """Run the command line; returns the exit code. tasks: by name; None: those of eval/tasks."""
    words = sys.argv[1:] if argv is None else argv
    config = cli.parse("python -m eval.sweep", evals.SWEEPS, words, evals.require)
    return carry_out(lambda: run(config, tasks))


def run(config: SweepConfig, tasks: "Mapping[str, Task] | None" = None) -> int:
    """Evaluate all of it; returns the exit code. Raises UserError."""
    from eval.evaluate import evaluate

    return evaluate(config.variants(), sources(config), known(tasks, config))


def sources(config: SweepConfig) -> "list[Source]":
    """The models of a sweep, each once, in the order they were given. Raises UserError."""
    if not config.checkpoints:
        return [source_of(config)]
    from gemma4_jax.distributed import say

    found: dict[str, EngineSource] = {}
    for given in config.checkpoints:
        for one in _of(given, config):
            if one.fingerprint in found:
                say(f"{one.where} is the same model as {found[one.fingerprint].where}: asked once")
            else:
                found[one.fingerprint] = one
    names = [one.name for one in found.values()]
    for one in found.values():
        if names.count(one.name) > 1:
            one.name = one.where
    return list(found.values())


def _of(given: str, config: SweepConfig) -> "list[EngineSource]":
    """The models that one word names."""
    from eval.engine_source import EngineSource
    from eval.training_run import is_training_run, steps
    from gemma4_jax.errors import UserError

    paths = sorted(glob.glob(given), key=_natural) if glob.has_magic(given) else [given]
    if not paths:
        raise UserError(f"checkpoints has {given!r}, and nothing is called so")
    result = []
    for path in paths:
        numbers: list[int | None] = [None]
        if is_training_run(Path(path)):
            numbers = [*steps(Path(path))] or numbers
        result += [EngineSource(path, config.model, config.mesh, step=one) for one in numbers]
    return result


def _natural(text: str) -> list[tuple[int, str]]:
    """A key by which step-900 comes before step-1000."""
    parts = re.split(r"(\d+)", text)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


if __name__ == "__main__":
    raise SystemExit(main())
