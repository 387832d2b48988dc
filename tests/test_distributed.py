"""Which surroundings make a process one of several, and what it then tells jax."""

import jax
import pytest

from gemma4_jax.distributed import initialize
from gemma4_jax.errors import UserError

NAMES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "SLURM_NTASKS")
NAMES += ("OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES", "GEMMA4_PROCESSES")


@pytest.fixture
def joined(monkeypatch):
    """How jax was asked to join others, if it was."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: calls.append(args))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return calls


@pytest.mark.parametrize(
    ("variables", "calls"),
    [
        ({}, []),
        ({"SLURM_NTASKS": "1", "TPU_WORKER_HOSTNAMES": "one"}, []),
        ({"SLURM_NTASKS": "4"}, [()]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, [()]),
        ({"TPU_WORKER_HOSTNAMES": "one,two"}, [()]),
        ({"GEMMA4_PROCESSES": "auto"}, [()]),
        (dict(zip(NAMES, ("host:1", "4", "3"), strict=False)), [("host:1", 4, 3)]),
    ],
)
def test_who_joins(joined, monkeypatch, variables, calls):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    initialize()
    assert joined == calls


def test_half_told_is_one_line(joined, monkeypatch):
    monkeypatch.setenv(NAMES[0], "host:1")
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES is not; set all three"):
        initialize()
    for name, value in zip(NAMES[1:3], ("0", "0"), strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"JAX_NUM_PROCESSES is '0'; it must be .* at least 1"):
        initialize()
    assert not joined
