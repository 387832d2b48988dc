"""Program: load a folder and print what that cost, as one JSON line (test_memory.py runs it)."""

import json
import sys
import time
from pathlib import Path

import jax

from gemma4_jax import checkpoint


def memory(field: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM; getrusage would count the parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def main(tiny: str, big: str, dtype: str) -> None:
    """Load `tiny` so that everything is imported and compiled, then measure `big`."""
    checkpoint.load(tiny, dtype)
    about = checkpoint.describe(big)
    before = memory("VmRSS")
    start = time.perf_counter()
    params = checkpoint.load_params(big, about.config, dtype)
    seconds = time.perf_counter() - start
    result = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(json.dumps({"result": result, "grown": memory("VmHWM") - before, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
