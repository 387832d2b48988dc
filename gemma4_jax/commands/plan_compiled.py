"""The step compiled for the machine, in a process of its own: its environment is that of libtpu.

A training step by `python -m train.ahead`, which is in a clone and not in the wheel: this library does not
import it, and says so where there is none. A step of decoding by `python -m gemma4_jax.commands.decode_ahead`.
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

_TRAINING, _DECODING = "train.ahead", "gemma4_jax.commands.decode_ahead"


def compile_ahead(
    workload: Workload,
    topology: Topology,
    model: str,
    program: Sequence[str] = (),
) -> dict[str, Any]:
    """What the program prints: seconds to lower and compile, bytes of a device, collectives.

    model: as the user named it. program: in the place of those two. Raises UserError without a clone, for
    machines that libtpu does not describe, and with the program's last line if it fails.
    """
    if topology.libtpu_name is None:
        raise UserError(
            f"--compile is for TPU slices of whole hosts, which libtpu describes; {topology.name} is none"
        )
    program = program or (sys.executable, "-m", _TRAINING if workload.trains else _DECODING)
    if program[-2] == "-m" and not _there(program[-1]):
        raise UserError(
            f"--compile runs python -m {program[-1]}, which is not here: run this in a clone"
        )
    mesh = ",".join(f"{axis}={size}" for axis, size in workload.mesh.items() if size > 1)
    words = [
        *program,
        *((workload.task, model) if workload.trains else (model,)),
        *("--topology", topology.name),
        *("--seq", str(workload.tokens)),
        *("--batch", str(workload.rows)),
        *("--mesh", mesh or "data=1"),
    ]
    if workload.trains:
        words += [
            *("--remat", workload.remat),
            *("--accumulation", str(workload.accumulation)),
            *("--lora", str(workload.lora.rank if workload.lora else 0)),
        ]
    else:
        words += ["--compression", workload.compression]
    words.append("--json")
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
