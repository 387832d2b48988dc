"""Which implementation of a part runs on which platform. Every choice equals its reference by test.

What no device has confirmed is no default. On GPU our Triton kernels were interpreted on CPU and compiled for
H100, and never run: they take the place of XLA's products only where a run asks for them (`model.gpu_kernels`).
`python -m benchmarks.kernels` on a GPU says whether they are right there, and faster. JAX 0.11 calls Pallas for
Triton deprecated: a second reason to lean on it only by choice.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gemma4_jax.collectives import current_mesh
from gemma4_jax.model import attention, layers
from gemma4_jax.model.moe import GroupedMatmul
from gemma4_jax.model.parts import Attend, Unembed
from gemma4_jax.model.weights import times_transposed
from gemma4_jax.parallel.grouped_matmul import blocked_grouped_matmul
from gemma4_jax.parallel.sequence_attention import sequence_attend
from gemma4_jax.parallel.splash import splash_attend
from gemma4_jax.parallel.triton_attention import triton_attend
from gemma4_jax.parallel.triton_grouped import triton_grouped_matmul

# Tokens up to which XLA:CPU reads a table fastest on the left: twice as fast for 8 to 32, nothing for hundreds.
_FEW = 64


def grouped_matmul_for(platform: str, gpu_kernels: bool = False) -> GroupedMatmul:
    """The experts' product: XLA's own on TPU; where that is dense in blocks of rows, or by our kernel."""
    if platform == "tpu":
        return jax.lax.ragged_dot
    return triton_grouped_matmul if platform == "gpu" and gpu_kernels else blocked_grouped_matmul


@functools.cache  # one object for a choice: compiled programs are found by it
def attend_for(platform: str, gpu_kernels: bool = False) -> Attend:
    """Attention in training: splash on TPU, on GPU ours if asked for, else XLA's; by tiles where a mesh cuts
    tokens."""
    alone: Attend = splash_attend if platform == "tpu" else attention.attend
    if platform == "gpu" and gpu_kernels:
        alone = triton_attend
    return functools.partial(sequence_attend, alone=alone)


def unembed_for(platform: str) -> Unembed:
    """Logits: on CPU with the table on the left of the product, where tokens are few."""
    return _unembed_few if platform == "cpu" else layers.unembed


def _unembed_few(
    hidden: Float[Array, "B T D"], table: Float[Array, "V D"]
) -> Float[Array, "B T V"]:
    batch, tokens, width = hidden.shape
    if batch * tokens > _FEW or current_mesh() is not None:
        return layers.unembed(hidden, table)
    logits = times_transposed(hidden.reshape(-1, width), table, jnp.float32)
    return logits.reshape(batch, tokens, -1)


def describe(platform: str, gpu_kernels: bool = False) -> str:
    """What runs where, in one line."""
    attend, experts = "XLA, blocked by windows and chunks of queries", "blocks of rows"
    if platform == "tpu":
        attend = "splash kernel (XLA for images, shared prompts and rows beyond 16384 tokens)"
        experts = "XLA ragged_dot"
    elif platform == "gpu" and gpu_kernels:
        attend = experts = "our Triton kernel"
    return f"attention: {attend}; experts: {experts}"
