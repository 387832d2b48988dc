"""What every benchmark measures alike: wall and CPU seconds of repeated calls, memory, versions."""

import json
import platform
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Wall and CPU seconds (all threads of this process) of each repeat of one piece of work."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def rates(self, amount: float) -> dict[str, float]:
        """`amount` per wall second (best repeat: the least disturbed) and per CPU second (median)."""
        return {
            "per_second": round(amount / min(self.wall), 2),
            "per_cpu_second": round(amount / sorted(self.cpu)[len(self.cpu) // 2], 2),
        }


def timed(work: Callable[[], Any], repeats: int) -> Timing:
    """Run `work` (which must wait for its own result) `repeats` times after one warm-up."""
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        w, c = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - w)
        cpu.append(time.process_time() - c)
    return Timing(wall=tuple(wall), cpu=tuple(cpu))


def peak_rss_mib() -> int:
    """Largest resident set of this process so far, MiB (Linux counts ru_maxrss in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def emit(result: dict[str, Any]) -> None:
    """One JSON line with the machine it was measured on."""
    print(json.dumps({**result, "python": platform.python_version()}), flush=True)
