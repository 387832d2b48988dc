"""SLURM: `python -m launch.slurm submit --name n --nodes 4 --gpus-per-node 8 -- train.sft 31b ...`.

One process a GPU, which is how jax reads a SLURM job. A quarter of an hour before the time limit, and when the
job is preempted, the run is told to save, and the job queues again; the same command goes on at the next row.
"""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from launch.command import ROOT, Plan, Run, at_least_one, cluster_parser, finish, read_run, split

# Seconds before the limit at which the run is told to save.
_NOTICE = 900

_SCRIPT = """\
#!/usr/bin/env bash
{directives}
set -uo pipefail
cd {root} || exit 1
export PATH={bin}:"$PATH"

again=0
# shellcheck disable=SC2329  # the trap calls it
save_and_queue() {{
  again=1
  scancel --signal=TERM "$SLURM_JOB_ID.0"
}}
trap save_and_queue USR1

srun --kill-on-bad-exit=1 {command} &
code=0
wait "$!" || code=$?
if [ "$again" -eq 1 ]; then
  # The first wait ended with the signal; this one ends with the run.
  code=0
  wait "$!" || code=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    prog = "python -m launch.slurm"
    own, words = split(argv)
    parser = cluster_parser(prog, "Runs on a SLURM cluster.")
    parser.add_argument("--nodes", type=at_least_one, default=1)
    parser.add_argument("--gpus-per-node", type=at_least_one, default=8)
    parser.add_argument("--cpus-per-gpu", type=at_least_one, default=8)
    parser.add_argument("--time", default="24:00:00", metavar="H:M:S")
    for name in ("partition", "account", "qos", "constraint"):
        parser.add_argument(f"--{name}", metavar="NAME")
    parser.add_argument(
        "--bin", type=Path, default=ROOT / ".venv" / "bin", help="of the environment"
    )
    options = parser.parse_args(own)
    run = read_run(prog, words) if options.action == "submit" else None
    return finish(plan(options, run), options.dry_run)


def plan(options: argparse.Namespace, run: Run | None) -> Plan:
    """What an action does. run: what to submit."""
    file = (options.folder / f"{options.name}.sbatch").absolute()
    mine = ["--me", f"--name={options.name}"]
    match options.action:
        case "submit":
            assert run is not None
            return Plan(files={file: script(options, run)}, commands=[["sbatch", str(file)]])
        case "resume":
            return Plan(commands=[["sbatch", str(file)]])
        case "tail":
            return Plan(commands=[["tail", "-n", "50", "-F", str(_output(options))]])
        case "status":
            return Plan(commands=[["squeue", *mine]])
        case _:
            # TERM to the steps alone: the script would queue again, or end before the run has saved.
            return Plan(commands=[["scancel", "--signal=TERM", *mine]])


def script(options: argparse.Namespace, run: Run) -> str:
    """The batch script."""
    asked = {
        "job-name": options.name,
        "nodes": options.nodes,
        "ntasks-per-node": options.gpus_per_node,
        "gpus-per-node": options.gpus_per_node,
        "cpus-per-task": options.cpus_per_gpu,
        "time": options.time,
        "output": _output(options),
        "open-mode": "append",
        "signal": f"B:USR1@{_NOTICE}",
    }
    asked |= {
        name: getattr(options, name)
        for name in ("partition", "account", "qos", "constraint")
        if getattr(options, name)
    }
    directives = [f"#SBATCH --{name}={value}" for name, value in asked.items()]
    return _SCRIPT.format(
        directives="\n".join([*directives, "#SBATCH --requeue"]),
        root=shlex.quote(str(ROOT)),
        bin=shlex.quote(str(options.bin.absolute())),
        command=run.shell,
    )


def _output(options: argparse.Namespace) -> Path:
    path: Path = (options.folder / f"{options.name}.out").absolute()
    return path


if __name__ == "__main__":
    raise SystemExit(main())
