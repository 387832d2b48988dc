"""One model on benchmarks: `python -m eval.run PRESET [--a.b value]`.

Presets are in configs/evals.py. The same command continues a run that was stopped or killed; more samples,
items or benchmarks in the same folder are added to what is there.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from configs import cli, evals
from configs.evals import EvalConfig

if TYPE_CHECKING:
    from eval.backend import Source
    from eval.task import Task


def main(argv: Sequence[str] | None = None, tasks: "Mapping[str, Task] | None" = None) -> int:
    """Run the command line; returns the exit code. tasks: by name; None: those of eval/tasks."""
    words = sys.argv[1:] if argv is None else argv
    config = cli.parse("python -m eval.run", evals.PRESETS, words, evals.require)
    return carry_out(lambda: run(config, tasks))


def carry_out(work: Callable[[], int]) -> int:
    """Do the work of a command line: errors in one line, Ctrl-C and SIGTERM too; returns the exit code."""
    from eval.stopping import resumable

    with resumable():
        # From here on jax is needed: seconds that --help and a mistyped flag must not cost.
        from gemma4_jax.distributed import initialize
        from gemma4_jax.errors import report_user_errors

        with report_user_errors():
            initialize()
            # Again: where there are several processes, jax has begun to listen to SIGTERM, and ends for none.
            with resumable():
                return work()


def run(config: EvalConfig, tasks: "Mapping[str, Task] | None" = None) -> int:
    """Evaluate as `config` says; returns the exit code. Raises UserError."""
    from eval.evaluate import evaluate

    return evaluate([config], [source_of(config)], known(tasks, config))


def known(tasks: "Mapping[str, Task] | None", config: EvalConfig) -> "Mapping[str, Task]":
    """The benchmarks that were given, or all of ours."""
    if tasks is not None:
        return tasks
    from eval.tasks import tasks_with

    return tasks_with(config.options())


def source_of(config: EvalConfig) -> "Source":
    """The server or folder that a configuration names."""
    if config.server.url:
        from eval.server_source import ServerSource

        return ServerSource(config.server)
    from eval.engine_source import EngineSource

    return EngineSource(config.model.path, config.model, config.mesh)


if __name__ == "__main__":
    raise SystemExit(main())
