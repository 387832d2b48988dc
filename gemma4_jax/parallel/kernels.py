"""Which implementation of a part runs on which platform. Every choice equals its reference by test."""

import functools

import jax

from gemma4_jax.model import attention
from gemma4_jax.model.moe import GroupedMatmul
from gemma4_jax.model.parts import Attend
from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul
from gemma4_jax.parallel.sequence_attention import sequence_attend
from gemma4_jax.parallel.splash import splash_attend


def grouped_matmul_for(platform: str) -> GroupedMatmul:
    """The experts' product: XLA's own on TPU and GPU, blocked on CPU (where XLA's is dense)."""
    return blocked_grouped_matmul if platform == "cpu" else jax.lax.ragged_dot


@functools.cache  # one object for a platform: compiled programs are found by it
def attend_for(platform: str) -> Attend:
    """Attention in training: splash on TPU, XLA's elsewhere; where a mesh cuts tokens, that of tiles."""
    alone = splash_attend if platform == "tpu" else attention.attend
    return functools.partial(sequence_attend, alone=alone)


def describe(platform: str) -> str:
    """What runs where, in one line."""
    attend = {
        "tpu": "splash kernel (XLA for images, shared prompts and rows beyond 16384 tokens)"
    }.get(platform, "XLA, blocked by windows and chunks of queries")
    experts = "blocks of rows" if platform == "cpu" else "XLA ragged_dot"
    return f"attention: {attend}; experts: {experts}"
