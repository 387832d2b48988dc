"""How fast a run is, and how near to what its device can do.

Counts are arithmetic on the configuration (compilers count the body of a scan once). MFU is
useful FLOPs over peak, so recomputation by remat lowers it.
"""

import resource
import sys
from pathlib import Path

import jax

from gemma4_jax.config import ModelConfig

# Dense bf16 FLOP/s of one device, by the start of jax's `device_kind`; vendors' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak of a device in FLOP/s; None for one we do not know, such as a CPU."""
    return next((p for kind, p in PEAK_FLOPS.items() if device_kind.startswith(kind)), None)


def flops_per_token(config: ModelConfig, length: int) -> float:
    """FLOPs of forward and backward for one token of a sequence of `length`; causal half counted."""
    d_model, total = config.d_model, float(config.vocab_size * config.d_model)
    for layer in config.layers:
        heads, keys = config.num_heads * layer.head_dim, layer.num_kv_heads * layer.head_dim
        total += 2 * d_model * heads + 3 * d_model * layer.d_ff
        if layer.owns_kv:
            total += d_model * keys * (1 if layer.value_from_key else 2)
        if config.moe is not None:
            total += d_model * config.moe.num_experts
            total += 3 * d_model * config.moe.num_experts_per_token * config.moe.d_ff
        total += 2 * d_model * config.per_layer_input_width
        context = min(length, config.window) if layer.kind == "sliding" else length
        # Scores and values: two products of N*H by the mean number of keys seen.
        total += 2 * heads * (context - context * context / (2 * length))
    total += d_model * config.num_layers * config.per_layer_input_width
    # Two FLOPs a multiplication; backward is twice forward.
    return 6.0 * total


def training_flops(config: ModelConfig, length: int, *, forwards: float = 0.0) -> float:
    """FLOPs per token of a training step, plus `forwards` extra passes without gradient."""
    return flops_per_token(config, length) * (1 + forwards / 3)


def peak_memory() -> float:
    """Most memory in use so far, GiB: of the first device where it says so, else of the process."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return float(stats["peak_bytes_in_use"]) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Profiler:
    """Records what the device does for some steps, for TensorBoard's profile page or Perfetto."""

    def __init__(self, folder: Path, first: int, steps: int):
        """folder: where it is written. first: step that it begins with, 0 for never. steps: how many."""
        self._folder, self._first, self._steps = folder, first, steps
        self._on = False

    def step(self, step: int) -> None:
        """Say that `step` is about to begin."""
        if self._on and step >= self._first + self._steps:
            self.close()
        if self._first and step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._on = True

    def close(self) -> None:
        """Write what was recorded."""
        if self._on:
            jax.profiler.stop_trace()
            self._on = False
