"""Which implementation of a part runs on which platform. Every choice equals its reference by test."""

import jax

from gemma4_jax.model.moe import GroupedMatmul
from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul


def grouped_matmul_for(platform: str) -> GroupedMatmul:
    """The experts' product: XLA's own on TPU and GPU, blocked on CPU (where XLA's is dense)."""
    return blocked_grouped_matmul if platform == "cpu" else jax.lax.ragged_dot
