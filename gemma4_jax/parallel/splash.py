"""Attention in training on TPU: JAX's splash kernel, which skips tiles that the mask hides.

Scores never leave the chip's own memory, and the tiles of a sliding layer are those of its band.
`splash_attend` equals `model.attention.attend`; what the kernel has no mask for goes there (`refusal` says
why). Not here: rows cut over devices (`sequence_attention`), decoding, GPUs.

Letters: B batch, T tokens, N query heads, K key/value heads, H head dim.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from gemma4_jax.collectives import mesh_over
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.attention import KeyValues, attend
from gemma4_jax.model.visibility import TokenFacts
from gemma4_jax.parallel.heads import divisible_heads
from gemma4_jax.parallel.splash_shapes import shape_refusal, tile
from gemma4_jax.sharding import BATCH


def splash_attend(
    config: ModelConfig,
    q: Float[Array, "B T N H"],
    kv: KeyValues,
    facts: TokenFacts,
    window: int | None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """`attend` by the kernel, on every device's own rows and heads; `attend` itself for what it cannot do.

    interpret: run the kernel's program without a TPU.
    """
    if refusal(config, q, kv, facts, window) is not None:
        return attend(config, q, kv, facts, window)
    assert kv.key is not None
    tokens, mesh = q.shape[1], mesh_over(q.shape)
    shape = (tokens, tokens)
    mask = masks.CausalMask(shape) if window is None else masks.LocalMask(shape, (window - 1, 0), 0)
    edge = tile(tokens)
    sizes = splash.BlockSizes(
        block_q=edge, block_kv=edge, block_q_dkv=edge, block_kv_dkv=edge, block_q_dq=edge, block_kv_dq=edge
    )  # fmt: skip

    def own(q: Array, key: Array, value: Array, segment: Array | None) -> Array:
        kernel = splash.make_splash_mha(
            masks.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )

        def one(q: Array, key: Array, value: Array, segment: Array | None) -> Array:
            ids = None if segment is None else splash.SegmentIds(segment, segment)
            by_head = (x.swapaxes(0, 1) for x in (q, key, value))
            return kernel(*by_head, segment_ids=ids).swapaxes(0, 1)

        of_rows: Any = jax.vmap(one)
        out: Array = of_rows(q, key, value, segment)
        return out

    segment = facts.segment
    if segment is not None:
        segment = jnp.broadcast_to(segment, q.shape[:2])
    if mesh is None:
        return own(q, kv.key, kv.value, segment)
    held = divisible_heads(kv, mesh)
    assert held.key is not None
    heads, rows = PartitionSpec(BATCH, None, "tensor"), PartitionSpec(BATCH)
    mapped = jax.shard_map(
        own, mesh=mesh, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    found: Array = mapped(q, held.key, held.value, segment)
    return found


def refusal(
    config: ModelConfig, q: Array, kv: KeyValues, facts: TokenFacts, window: int | None
) -> str | None:
    """Why the kernel does not do this attention; None if it does."""
    tokens = q.shape[1]
    if kv.value.shape[1] != tokens or kv.key is None:
        return "queries and keys are not the same tokens"
    if config.bidirectional == "all":
        return "attention is two-sided"
    if facts.branch is not None:
        return "branches share a prompt"
    if window is not None and facts.block is not None and config.bidirectional == "vision":
        return "images are seen both ways"
    return shape_refusal(tokens, q.shape[3])
