"""Several processes as one run: how they find each other, and what they agree on.

One process per host (or several on one, for tests). The first is the main one: it writes what there is one of.
Everything here is a no-op where there is one process. Not here: meshes (`sharding.py`).
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_jax.errors import UserError

_ADDRESS, _COUNT, _INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
# A process that was not heard of for so many seconds is dead, and ends the others (jax waits 100).
_HEARTBEAT = 30
# "auto": jax is to ask its surroundings (the metadata server of a Cloud TPU host) who else there is.
_ASK = "GEMMA4_PROCESSES"
# Variables by which jax itself recognises a job of several processes.
_CLUSTERS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")


def initialize() -> None:
    """Join the other processes of this run, if the environment says that there are any.

    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; or a job of SLURM
    or Open MPI, or several TPU workers, which jax recognises; or GEMMA4_PROCESSES=auto, and jax finds out.
    To be called before anything uses a device.
    """
    given = [name for name in (_ADDRESS, _COUNT, _INDEX) if name in os.environ]
    if given:
        missing = [name for name in (_ADDRESS, _COUNT, _INDEX) if name not in os.environ]
        if missing:
            raise UserError(f"{given[0]} is set and {missing[0]} is not; set all three, or none")
        jax.distributed.initialize(
            os.environ[_ADDRESS],
            _number(_COUNT, least=1),
            _number(_INDEX, least=0),
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
    elif (
        any(int(os.environ.get(name, "1")) > 1 for name in _CLUSTERS)
        or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
        or os.environ.get(_ASK) == "auto"
    ):
        jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)


def _number(name: str, least: int) -> int:
    text = os.environ[name]
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name} is {text!r}; it must be a whole number of at least {least}")
    return int(text)


def is_main() -> bool:
    """Whether this process writes what a run has one of."""
    return jax.process_index() == 0


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if is_main():
        print(text, flush=True)


def roster() -> list[str]:
    """Every process by name: its number, its host, its process id. All must ask.

    jax names a process that died by its number alone ("Task 3 heartbeat timeout").
    """
    from jax.experimental import multihost_utils

    name = f"{socket.gethostname()}, pid {os.getpid()}".encode()[:128]
    padded = np.frombuffer(name.ljust(128), np.uint8)
    names = multihost_utils.process_allgather(padded).reshape(-1, 128)
    return [
        f"task {number}: {row.tobytes().decode(errors='replace').strip()}"
        for number, row in enumerate(names)
    ]


def barrier(name: str) -> None:
    """Wait until all processes are here. name: the same everywhere."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """Context that the main process goes through first, the others after it: they find what it wrote."""
    if not is_main():
        barrier(name)
    yield
    if is_main():
        barrier(name)


def everywhere(ok: bool) -> bool:
    """Whether `ok` is True in all processes."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


@contextlib.contextmanager
def all_succeed(what: str, alone: bool = False) -> Iterator[None]:
    """Context that fails in every process if it fails in one; all processes must go through it.

    Where it went well and others failed, UserError that says which could not do `what`. alone: this process
    works for itself; nobody is asked.
    """
    if alone or jax.process_count() == 1:
        yield
        return
    from jax.experimental import multihost_utils

    def failed(mine: bool) -> np.ndarray:
        return np.flatnonzero(multihost_utils.process_allgather(np.asarray(mine)))

    try:
        yield
    except Exception:
        failed(True)
        raise
    others = failed(False)
    if len(others):
        raise UserError(f"task {others[0]} could not {what}; its own last line says why")


def stopping_at(step: int) -> bool:
    """Whether a process of several was told to end, and all agreed to do so at `step`.

    Every process must ask at every step. A SIGTERM to any of them is enough (jax's preemption service).
    """
    from jax.experimental import multihost_utils

    return bool(multihost_utils.reached_preemption_sync_point(step))


def on_this_host(tree: Any) -> Any:
    """The tree with whole arrays on this process's own devices; all processes must ask. One process alone gets
    the tree as it is."""
    if jax.process_count() == 1:
        return tree
    from jax.experimental import multihost_utils

    return jax.tree.map(
        lambda leaf: jnp.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree
    )
