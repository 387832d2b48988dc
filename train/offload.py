"""The optimiser's moments in host memory between steps.

Numbers without axes (counts of steps) stay on the device. Not here: when (step.py), checkpoints, which hold
the same arrays either way.
"""

from typing import Any

import jax

# Memory kind of arrays that a device can copy from and to on its own; CPUs have it too.
HOST = "pinned_host"


def to_host(opt_state: Any) -> Any:
    """`opt_state` in host memory; inside jit."""
    return _moved(opt_state, jax.memory.Space.Host)


def to_device(opt_state: Any) -> Any:
    """`opt_state` in the memory of the device; inside jit."""
    return _moved(opt_state, jax.memory.Space.Device)


def shardings(opt_state: Any, places: Any) -> Any:
    """Where each leaf is between steps; places: where it would be on its device."""
    return jax.tree.map(lambda x, p: p.with_memory_kind(HOST) if x.ndim else p, opt_state, places)


def _moved(opt_state: Any, space: Any) -> Any:
    return jax.tree.map(lambda x: jax.device_put(x, space) if x.ndim else x, opt_state)
