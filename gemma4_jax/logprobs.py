"""Token log-probabilities without logits: no [B, T, V] array, forward or backward.

The vocabulary has 262 144 entries; float32 logits of 64 Ki tokens would take 64 GiB. Here the wanted
positions are moved to the front, then taken a chunk at a time: project, cap, log-softmax, keep one number
each. The backward pass does the same again. Positions outside the mask cost nothing, so an
assistant-only loss pays for assistant tokens. SFT, DPO, scoring and evaluation share this function.

Letters: B batch, T tokens, D d_model, V vocabulary, M = B * T positions, C positions per chunk.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gemma4_jax.model.layers import soft_cap

# Numbers in one chunk of logits: 64 MiB in float32. Larger chunks gain no speed, only memory.
_CHUNK_LOGITS = 2**24


def token_logprobs(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    *,
    softcap: float | None,
    mask: Bool[Array, "B T"] | None = None,
    chunk: int | None = None,
) -> Float[Array, "B T"]:
    """log softmax(cap(hidden . table^T))[target], float32; 0 where `mask` is False.

    hidden: after the final norm. table: the tied embedding table. softcap: the final soft cap, or None.
    chunk: positions taken at a time; by default as many as keep a chunk of logits at 64 MiB.
    """
    shape, rows = targets.shape, targets.size
    chunk = min(chunk or max(8, _CHUNK_LOGITS // table.shape[0]), rows)
    keep = jnp.ones((rows,), bool) if mask is None else mask.reshape(-1)
    out = _masked_logprobs(
        softcap,
        chunk,
        hidden.reshape(rows, -1),
        table.astype(hidden.dtype),
        targets.reshape(-1),
        keep,
    )
    return out.reshape(shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _masked_logprobs(
    softcap: float | None, chunk: int, hidden: Array, table: Array, targets: Array, keep: Array
) -> Array:
    return _forward(softcap, chunk, hidden, table, targets, keep)[0]


def _plan(keep: Array, chunk: int) -> tuple[Array, Array]:
    """Positions with the wanted ones first, padded to whole chunks with the out-of-range index M (which
    reads clip and writes drop); and how many chunks hold a wanted one."""
    order = jnp.argsort(~keep, stable=True).astype(jnp.int32)
    order = jnp.pad(order, (0, -order.size % chunk), constant_values=order.size)
    return order, -(-jnp.sum(keep, dtype=jnp.int32) // chunk)


def _chunk_logits(softcap: float | None, rows: Array, table: Array) -> Array:
    logits = jnp.einsum("cd,vd->cv", rows, table, preferred_element_type=jnp.float32)
    return soft_cap(logits, softcap)


def _forward(
    softcap: float | None, chunk: int, hidden: Array, table: Array, targets: Array, keep: Array
) -> tuple[Array, Any]:
    order, chunks = _plan(keep, chunk)

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        logprobs, normalisers = carry
        at = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
        logits = _chunk_logits(softcap, hidden.at[at].get(mode="clip"), table)
        normaliser = jax.nn.logsumexp(logits, axis=-1)
        wanted = targets.at[at].get(mode="clip")
        chosen = jnp.take_along_axis(logits, wanted[:, None], axis=-1)[:, 0]
        return (
            logprobs.at[at].set(chosen - normaliser, mode="drop"),
            normalisers.at[at].set(normaliser, mode="drop"),
        )

    zeros = jnp.zeros(targets.shape, jnp.float32)
    logprobs, normalisers = jax.lax.fori_loop(0, chunks, body, (zeros, zeros))
    logprobs = jnp.where(keep, logprobs, 0.0)  # the last chunk may reach past the wanted positions
    return logprobs, (hidden, table, targets, keep, normalisers)


def _backward(softcap: float | None, chunk: int, saved: Any, grad: Array) -> tuple[Any, ...]:
    hidden, table, targets, keep, normalisers = saved
    order, chunks = _plan(keep, chunk)
    grad = jnp.where(keep, grad, 0.0)

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_hidden, d_table = carry
        at = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
        rows = hidden.at[at].get(mode="clip")
        logits = _chunk_logits(softcap, rows, table)
        probabilities = jnp.exp(logits - normalisers.at[at].get(mode="clip")[:, None])
        g = grad.at[at].get(mode="fill", fill_value=0.0)[:, None]
        wanted = targets.at[at].get(mode="clip")[:, None]
        columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        d_logits = g * ((columns == wanted) - probabilities)
        if softcap is not None:
            d_logits = d_logits * (1 - jnp.square(logits / softcap))
        # A position that was never computed has normaliser 0 and exp may overflow; its gradient is 0.
        d_logits = jnp.where(g == 0, 0.0, d_logits).astype(table.dtype)
        d_rows = jnp.einsum("cv,vd->cd", d_logits, table, preferred_element_type=jnp.float32)
        d_table += jnp.einsum("cv,cd->vd", d_logits, rows, preferred_element_type=jnp.float32)
        return d_hidden.at[at].set(d_rows, mode="drop"), d_table

    start = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(table.shape, jnp.float32)
    d_hidden, d_table = jax.lax.fori_loop(0, chunks, body, start)
    none = np.zeros(targets.shape, jax.dtypes.float0)
    return d_hidden.astype(hidden.dtype), d_table.astype(table.dtype), none, none


_masked_logprobs.defvjp(_forward, _backward)
