"""Attention in training on GPU by our own kernels, whose tiles are those that a query may see.

`triton_attend` equals `model.attention.attend`, for windows, packed documents, images seen both ways and
branches alike; heads up to 512 numbers, which cuDNN refuses. **Interpreted on CPU and compiled for H100; never
run on a GPU**: `kernels.py` takes it only where a run asks for it. Not here: the programs (`triton_kernels`),
rows cut over devices (`sequence_attention`), decoding.

Letters: B batch, T tokens, N query heads, K key/value heads, H head dim.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from gemma4_jax.collectives import mesh_over
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.attention import KeyValues, attend
from gemma4_jax.model.visibility import EMPTY, TokenFacts
from gemma4_jax.parallel import triton_kernels as kernels
from gemma4_jax.parallel.attention_bounds import Facts
from gemma4_jax.parallel.heads import divisible_heads
from gemma4_jax.sharding import BATCH

# The tensor cores' smallest side, and the largest heads that any plan of tiles is made for.
_SMALLEST_HEAD, _LARGEST_HEAD = 16, 512


def triton_attend(
    config: ModelConfig,
    q: Float[Array, "B T N H"],
    kv: KeyValues,
    facts: TokenFacts,
    window: int | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`attend` by the kernels, on every device's own rows and heads; `attend` itself for what they cannot do.

    interpret: run the kernels' programs without a GPU.
    """
    if refusal(config, q, kv) is not None:
        return attend(config, q, kv, facts, window)
    assert kv.key is not None
    images = window is not None and config.bidirectional == "vision"
    how = kernels.How(window, "vision" if images else None, interpret)
    known = {
        name: jnp.broadcast_to(fact, q.shape[:2])
        for name, fact in vars(facts).items()
        if fact is not None and (name != "block" or images)
    }
    own, mesh = functools.partial(_any_length, how), mesh_over(q.shape)
    if mesh is None:
        return own(q, kv.key, kv.value, known)
    held = divisible_heads(kv, mesh)
    assert held.key is not None
    heads, rows = PartitionSpec(BATCH, None, "tensor"), PartitionSpec(BATCH)
    mapped = jax.shard_map(
        own, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    found: Array = mapped(q, held.key, held.value, known)
    return found


def refusal(config: ModelConfig, q: Array, kv: KeyValues) -> str | None:
    """Why the kernels do not do this attention; None if they do."""
    if kv.value.shape[1] != q.shape[1] or kv.key is None:
        return "queries and keys are not the same tokens"
    if config.bidirectional == "all":
        return "attention is two-sided"
    size = q.shape[3]
    if size & (size - 1) or not _SMALLEST_HEAD <= size <= _LARGEST_HEAD:
        return f"heads of {size} numbers are no power of 2 from {_SMALLEST_HEAD} to {_LARGEST_HEAD}"
    return None


def _any_length(how: kernels.How, q: Array, key: Array, value: Array, facts: Facts) -> Array:
    """Rows filled up with tokens that nobody sees."""
    tokens = q.shape[1]
    extra = -tokens % kernels.LARGEST_TILE
    if not extra:
        return _attention(how, q, key, value, facts)
    q, key, value = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q, key, value))
    # Other facts as the last token's: new documents would widen the runs of tiles.
    facts = {
        name: jnp.pad(fact, ((0, 0), (0, extra)), constant_values=EMPTY)
        if name == "index"
        else jnp.pad(fact, ((0, 0), (0, extra)), mode="edge")
        for name, fact in facts.items()
    }
    return _attention(how, q, key, value, facts)[:, :tokens]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how: kernels.How, q: Array, key: Array, value: Array, facts: Facts) -> Array:
    return kernels.output(how, q, key, value, facts)[0]


def _forward(
    how: kernels.How, q: Array, key: Array, value: Array, facts: Facts
) -> tuple[Array, Any]:
    out, logsumexp = kernels.output(how, q, key, value, facts)
    return out, (q, key, value, facts, out, logsumexp)


def _backward(how: kernels.How, saved: Any, grad: Array) -> tuple[Any, ...]:
    q, key, value, facts, out, logsumexp = saved
    inner = (out.astype(jnp.float32) * grad.astype(jnp.float32)).sum(-1).swapaxes(1, 2)
    given = (how, q, key, value, facts, grad, (logsumexp, inner))
    return kernels.of_queries(*given), *kernels.of_keys(*given), None


_attention.defvjp(_forward, _backward)
