"""Compiling for TPUs that are not there: libtpu on any Linux machine, a topology by name, and what came out.

What is lowered must hold shapes alone, and name their places on a mesh of `devices`; under `jax.set_mesh`
of such a mesh nothing can be computed. Not here: which program (`train/ahead.py`), reading it (`hlo.py`),
machines' names (`topology.py`).
"""

import dataclasses
import importlib.util
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

from gemma4_jax.errors import UserError
from gemma4_jax.hlo import Cycles, Program
from gemma4_jax.topology import Topology

# XLA's effort. At O0 compiling takes a fifth of the CPU of the default and needs about as much of the device's
# memory, but products are cut in tiles ten times too slow.
Level = Literal["O0", "O1", "default"]

# libtpu 0.0.42 aborts on programs for many tpu7x where it moves collectives to SparseCores ("Check failed:
# std::abs(inc) < core_count()").
_SPARSE_CORES = "--xla_tpu_enable_sparse_core_collective_offload_{}=false"
# Without most of these libtpu looks for the machine it is on, and says so at length.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process that compiles is refused
    "LIBTPU_INIT_ARGS": " ".join(
        _SPARSE_CORES.format(name) for name in ("all_reduce", "all_gather", "reduce_scatter")
    ),
}
# The compiler's cycles a second: as many as make a bfloat16 product of 8192 x 8192 matrices run at the peak of
# the chip's data sheet (libtpu 0.0.42, default level). A pass over memory then takes twice what it should.
_CYCLES_PER_SECOND = {"v5e": 1.71e9, "v5p": 1.94e9, "v6e": 2.49e9, "tpu7x": 2.73e9}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Of one compilation; bytes are those of one device.

    seconds: on the clock; cpu_seconds: of all threads. host_peak: most resident memory of this process so far.
    peak: most in use at a time, arguments included (of a program that does not fit: what it asked for, if
    the compiler says so). arguments, temporaries, program: None for a program that does not fit; reason: why.
    """

    seconds: float
    cpu_seconds: float
    host_peak: int
    fits: bool
    peak: int
    arguments: int | None = None
    temporaries: int | None = None
    program: Program | None = None
    reason: str = ""


def prepare() -> None:
    """Set up this process; before jax is imported. UserError where libtpu is not installed."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            'compiling for TPUs needs libtpu, a TPU is not needed: pip install "jax[tpu]" (our extra: tpu)'
        )
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def devices(topology: Topology) -> list[Any]:
    """The devices of a machine, of all its hosts, to make a mesh of."""
    from jax.experimental import topologies

    if topology.libtpu_name is None:
        raise UserError(
            f"{topology.name} is nothing that libtpu compiles for: name a TPU slice of 4 chips or more"
        )
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology.libtpu_name)
    return list(found.devices)


def compiled(lowered: Any, level: Level = "O0", bounds: dict[str, int] | None = None) -> Outcome:
    """Compile what `jit(f).lower(...)` gave. bounds: as of `hlo.Program`."""
    import jax

    options = jax.config.values["jax_optimization_level"]
    if level != "default":
        jax.config.update("jax_optimization_level", level)
    began, cpu = time.perf_counter(), time.process_time()
    result, reason = None, ""
    try:
        result = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error)
        if "RESOURCE_EXHAUSTED" not in reason:
            raise
    finally:
        jax.config.update("jax_optimization_level", options)
    cost: dict[str, Any] = {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "host_peak": host_peak(),
    }
    if result is None:
        return Outcome(**cost, fits=False, peak=_asked(reason), reason=reason)
    memory = result.memory_analysis()
    return Outcome(
        **cost,
        fits=True,
        peak=memory.peak_memory_in_bytes,
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        program=Program(result.as_text(), bounds),
    )


def report(
    lower: Callable[[], tuple[Any, dict[str, int] | None]],
    mesh: Any,
    place: Topology,
    level: Level = "O0",
) -> dict[str, Any]:
    """Lower and compile a program for `mesh`, made of the `devices` of `place`; a report that JSON can hold.

    lower: gives what `jit(f).lower(...)` gave, and `bounds` of `hlo.Program`; under `jax.set_mesh(mesh)`. Bytes
    are those of one device, seconds of the clock but for cpu_seconds, `collectives` the largest first: count is
    how often a device takes part in one run, bytes what arrives each time.
    """
    import jax

    with jax.set_mesh(mesh):
        began = time.perf_counter()
        lowered, bounds = lower()
        seconds_to_lower = time.perf_counter() - began
        outcome = compiled(lowered, level, bounds)
    program, seconds = outcome.program, None
    if program is not None and level == "default":
        seconds = estimated_seconds(program.cycles(), place)
    collectives = [] if program is None else program.collectives(dict(mesh.shape))
    return {
        "topology": place.name,
        "mesh": dict(mesh.shape),
        "seconds_to_lower": round(seconds_to_lower, 2),
        "seconds_to_compile": round(outcome.seconds, 2),
        "cpu_seconds_to_compile": round(outcome.cpu_seconds, 2),
        "host_peak_bytes": outcome.host_peak,
        "peak_bytes": outcome.peak,
        "argument_bytes": outcome.arguments,
        "temporary_bytes": outcome.temporaries,
        "hbm_bytes": place.memory,
        "fits": outcome.fits,
        "collectives": [dataclasses.asdict(one) for one in collectives],
        "estimated_seconds": seconds,
    }


def described(report: dict[str, Any]) -> str:
    """A report, with `task` and `model`, and `cache_bytes` where there is a cache, as lines for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    verdict = "fits" if report["fits"] else "DOES NOT FIT"
    cache = f", {_gib(report['cache_bytes'])} of them cache" if "cache_bytes" in report else ""
    lines = [
        f"{report['task']} of {report['model']} on {report['topology']} ({mesh or 'one device'}): {verdict}, "
        f"{_gib(report['peak_bytes'])} of {_gib(report['hbm_bytes'])} GiB a device{cache}",
        f"lowered in {report['seconds_to_lower']:.1f} s, compiled in {report['seconds_to_compile']:.1f} s "
        f"({report['cpu_seconds_to_compile']:.0f} of CPU), {_gib(report['host_peak_bytes'])} GiB of "
        "this machine",
    ]
    if report["fits"]:
        lines.append(
            f"arguments {_gib(report['argument_bytes'])} GiB, "
            f"temporaries {_gib(report['temporary_bytes'])} GiB"
        )
    if report["estimated_seconds"] is not None:
        seconds = report["estimated_seconds"]
        lines.append(f"the compiler's cycles are {seconds:.3g} s, without waiting for others")
    for one in report["collectives"][:12]:
        axes = ",".join(one["axes"] or ["?"])
        lines.append(
            f"  {_gib(one['count'] * one['bytes']):>8} GiB  {one['operation']:<18} {one['shape']:<28} "
            f"over {axes}, {one['count']} times"
        )
    return "\n".join(lines)


def _gib(size: int) -> str:
    """Three digits at least, of exchanges of a few numbers too."""
    number = size / 2**30
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def estimated_seconds(cycles: Cycles, topology: Topology) -> float:
    """Of a program compiled at the default level: the compiler's cycles, at the rate of the chip.

    Left out: waiting for other devices, and kernels that the compiler has no estimate for (`Cycles.without`).
    """
    return cycles.total / _CYCLES_PER_SECOND[topology.chip.name]


def host_peak() -> int:
    """Most resident bytes of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _asked(message: str) -> int:
    """Bytes that a program which does not fit would need; 0 if the message does not say."""
    match = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
    match = match or re.search(r"total memory required[^(]*\(([\d.]+)([KMGT]?)\)", message)
    return round(float(match.group(1)) * _UNITS[match.group(2)]) if match else 0
