"""Values of arrays in host memory: fetching parts of a leaf, and looking for NaN and Inf."""

from typing import Any

import jax
import numpy as np

_EXPONENT = {
    "float16": 0x7C00,
    "bfloat16": 0x7F80,
    "float32": 0x7F80_0000,
    "float64": 0x7FF0_0000_0000_0000,
}


def host_block(leaf: Any, *spans: slice) -> np.ndarray:
    """leaf[spans] in host memory; a view if the leaf is there already."""
    if not isinstance(leaf, jax.Array) or _on_host(leaf):
        return np.asarray(leaf)[spans]
    whole = [slice(0, size) for size in leaf.shape[len(spans) :]]
    starts, sizes = zip(*((s.start, s.stop - s.start) for s in (*spans, *whole)), strict=True)
    return np.asarray(jax.lax.dynamic_slice(leaf, starts, sizes))


def _on_host(leaf: jax.Array) -> bool:
    devices = leaf.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or Inf.

    Those have all exponent bits set. On integers the test runs at 28 GB/s; isfinite is as fast for
    float32 and takes ten times as long for bfloat16. Meant for blocks: it needs a temporary as big as `values`.
    """
    mask = _EXPONENT[values.dtype.name]
    bits = values.view(f"u{values.itemsize}") & mask
    return bool(bits.max(initial=0) != mask)
