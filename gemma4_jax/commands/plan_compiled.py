"""The step compiled for the machine, by `python -m train.ahead` in a process of its own.

That program needs the run's own code, which is in a clone and not in the wheel: this library does not import
it, and says so where there is none.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemma4_jax.errors import UserError

if TYPE_CHECKING:
    from gemma4_jax.plan.workload import Workload
    from gemma4_jax.topology import Topology

_PROGRAM = "train.ahead"


def compile_ahead(
    workload: Workload,
    topology: Topology,
    model: str,
    program: Sequence[str] = (sys.executable, "-m", _PROGRAM),
) -> dict[str, Any]:
    """What the program prints: seconds to lower and compile, bytes of a device, collectives.

    model: as the user named it. Raises UserError without a clone, for machines that libtpu does not describe,
    and with the program's last line if it fails.
    """
    if topology.libtpu_name is None:
        raise UserError(
            f"--compile is for TPU slices of whole hosts, which libtpu describes; {topology.name} is none"
        )
    if program[-2] == "-m" and not _there(program[-1]):
        raise UserError(
            f"--compile runs python -m {program[-1]}, which is not here: run this in a clone"
        )
    mesh = ",".join(f"{axis}={size}" for axis, size in workload.mesh.items() if size > 1)
    words = [
        *program,
        *(workload.task, model),
        *("--topology", topology.name),
        *("--seq", str(workload.tokens)),
        *("--batch", str(workload.rows)),
        *("--mesh", mesh or "data=1"),
        *("--remat", workload.remat),
        *("--accumulation", str(workload.accumulation)),
        *("--lora", str(workload.lora.rank if workload.lora else 0)),
        "--json",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"{' '.join(program)}: {lines[-1].removeprefix('error: ')}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
