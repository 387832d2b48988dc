"""Program: load a folder and print what that cost, as one JSON line (test_memory.py runs it)."""

import json
import resource
import sys
import time

import jax
import psutil

from gemma4_jax import checkpoint


def main(tiny: str, big: str, dtype: str) -> None:
    """Load `tiny` so that everything is imported and compiled, then measure `big`."""
    checkpoint.load(tiny, dtype)
    about = checkpoint.describe(big)
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    params = checkpoint.load_params(big, about.config, dtype)
    seconds = time.perf_counter() - start
    result = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"result": result, "grown": peak - before, "seconds": seconds}))


if __name__ == "__main__":
    main(*sys.argv[1:])
