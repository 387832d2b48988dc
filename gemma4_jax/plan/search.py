"""Which meshes, remat policies and numbers of micro-batches fit a run on a machine, the fastest ones first.

Every mesh of the five axes over all devices is tried with every policy, and with as few micro-batches as
fit: each one more gathers the weights again. What is left out is counted, with a reason in the words of the
run that would refuse it. Not here: what a candidate costs (`memory.py`, `speed.py`).
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from gemma4_jax.errors import UserError
from gemma4_jax.model.block import REMAT_POLICIES, Remat
from gemma4_jax.plan.memory import bytes_by_part, peak
from gemma4_jax.plan.speed import ASSUMED, Assumptions, StepTime, step_time
from gemma4_jax.plan.workload import Workload, check
from gemma4_jax.sharding import AXES
from gemma4_jax.topology import Topology

# Of a device's memory: the rest is XLA's programs, fragments, what arithmetic forgets. The presets by hardware
# are held to the same (tests/configs/test_presets_fit.py).
ROOM = 0.9


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A workload that fits, its peak bytes on a device, and its predicted step."""

    workload: Workload
    peak: int
    time: StepTime


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why `count` meshes (with a policy each) are none. example: of the one that came nearest."""

    reason: str
    count: int
    example: str


@dataclass(frozen=True, kw_only=True)
class Found:
    """candidates: fastest first; tried: meshes."""

    candidates: list[Candidate]
    refusals: list[Refusal]
    tried: int


def search(workload: Workload, topology: Topology, assumed: Assumptions = ASSUMED) -> Found:
    """Candidates for a run like `workload`, whose mesh, policy and micro-batches are not read."""
    candidates: list[Candidate] = []
    legality: dict[str, tuple[int, str]] = {}
    lacking: list[tuple[int, str]] = []
    meshes = list(_meshes(topology.devices))
    for sizes in meshes:
        base = dataclasses.replace(workload, sizes=sizes, accumulation=1)
        try:
            check(base)
        except UserError as error:
            reason = _kind(str(error))
            count, _ = legality.get(reason, (0, ""))
            legality[reason] = (count + 1, f"{_mesh(sizes)}: {error}")
            continue
        for remat in REMAT_POLICIES if base.trains else (REMAT_POLICIES[0],):
            fit, least = least_accumulation(base, remat, topology)
            if fit is None:
                lacking.append((least, f"{_mesh(sizes)}, remat {remat}: {least / 1e9:.1f} GB"))
                continue
            time = step_time(fit, topology, assumed)
            candidates.append(Candidate(workload=fit, peak=least, time=time))
    candidates.sort(key=lambda found: (found.time.step, found.peak))
    refusals = [Refusal(reason=r, count=n, example=e) for r, (n, e) in legality.items()]
    if lacking:
        allowed = f"{ROOM:.0%} of {topology.memory / 1e9:.1f} GB"
        nearest = min(lacking)[1]
        refusals.append(
            Refusal(reason=f"more than {allowed} a device", count=len(lacking), example=nearest)
        )
    return Found(candidates=candidates, refusals=refusals, tried=len(meshes))


def best_by_mesh(found: Found, count: int) -> list[Candidate]:
    """The fastest candidates, one of each mesh."""
    chosen: dict[tuple[int, ...], Candidate] = {}
    for candidate in found.candidates:
        chosen.setdefault(candidate.workload.sizes, candidate)
    return list(chosen.values())[:count]


def least_accumulation(
    workload: Workload, remat: Remat, topology: Topology
) -> tuple[Workload | None, int]:
    """With as few micro-batches as fit, and its peak; None, and the least peak, if no number does."""
    room, least = int(ROOM * topology.memory), 0
    share = workload.rows // workload.row_parts
    for accumulation in (n for n in range(1, share + 1) if share % n == 0):
        tried = dataclasses.replace(workload, remat=remat, accumulation=accumulation)
        needed = peak(bytes_by_part(tried))
        if needed <= room:
            return tried, needed
        least = min(least or needed, needed)
        if not workload.trains:
            break
    return None, least


def _meshes(devices: int, axes: int = len(AXES)) -> Iterator[tuple[int, ...]]:
    """All ways to write a number of devices as a product of sizes."""
    if axes == 1:
        yield (devices,)
        return
    for size in range(1, devices + 1):
        if devices % size == 0:
            for rest in _meshes(devices // size, axes - 1):
                yield (size, *rest)


def _mesh(sizes: tuple[int, ...]) -> str:
    named = [f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True) if size > 1]
    return ",".join(named) or "one device"


def _kind(message: str) -> str:
    """What errors of many meshes have in common."""
    for words, reason in (
        ("no experts", "expert: the model has none"),
        ("micro-batch", "data x fsdp x expert does not divide the rows"),
        ("equal chunks", "2 x seq does not divide a row"),
        ("kv_heads", "tensor does not divide K/V heads"),
        ("heads", "tensor does not divide heads"),
        ("experts", "expert does not divide the experts"),
    ):
        if words in message:
            return reason
    return "the mesh does not divide a matrix"
