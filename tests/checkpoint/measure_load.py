"""Program: load a folder and print what that cost, as one JSON line (test_memory.py runs it).

One process, or several over a mesh if the environment says so.
"""

import json
import sys
import time
from pathlib import Path

import jax

from gemma4_jax import checkpoint
from gemma4_jax.distributed import initialize
from gemma4_jax.sharding import make_mesh


def proc(file: str, field: str) -> int:
    """A number of this process: VmRSS, VmHWM (kB in status; getrusage would count the parent's), rchar."""
    for line in Path("/proc/self", file).read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * (1024 if line.endswith("kB") else 1)
    raise RuntimeError(f"no {field} in /proc/self/{file}")


def main(tiny: str, big: str, dtype: str, sizes: str = "null") -> None:
    """Load `tiny` so that everything is imported and compiled, then measure `big`.

    sizes: of the mesh axes, as JSON; null: no mesh.
    """
    initialize()
    mesh = None if sizes == "null" else make_mesh(json.loads(sizes))
    checkpoint.load(tiny, dtype, mesh)
    about = checkpoint.describe(big)
    before, read = proc("status", "VmRSS"), proc("io", "rchar")
    start = time.perf_counter()
    params = checkpoint.load_params(big, about.config, dtype, mesh=mesh)
    cost = {
        "seconds": time.perf_counter() - start,
        "read": proc("io", "rchar") - read,
        "grown": proc("status", "VmHWM") - before,
        "result": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "own": sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(params)
            for shard in leaf.addressable_shards
        ),
    }
    print(json.dumps(cost))


if __name__ == "__main__":
    main(*sys.argv[1:])
