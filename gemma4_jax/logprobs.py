"""Token log-probabilities without logits: no [B, T, V] array, forward or backward.

The vocabulary has 262 144 entries; float32 logits of 64 Ki tokens would take 64 GiB. Here the wanted
positions are moved to the front, then taken a chunk at a time: project, cap, log-softmax, keep one number
each. The backward pass does the same again. Positions outside the mask cost nothing, so an
assistant-only loss pays for assistant tokens. Where a mesh cuts the vocabulary, every device projects on its
own part, and numbers alone are exchanged. SFT, DPO, scoring and evaluation share this file.

Letters: B batch, T tokens, D d_model, V vocabulary, M = B * T positions, C positions per chunk.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from gemma4_jax.collectives import mesh_over, over_tokens
from gemma4_jax.model.layers import soft_cap
from gemma4_jax.sharding import platform, spec

# A chunk of logits of so many numbers stays in a processor's cache (XLA:CPU, 16 MiB in float32), but never
# fewer rows than make reading the table once a chunk worth it: an accelerator multiplies hundreds of rows in
# the time that it reads a matrix.
_CHUNK_LOGITS = 2**22
# In the names of a program's operations: whoever reads one can tell these loops.
SCOPE = "token_scores"
_LEAST_ROWS = {"cpu": 64}
LEAST_ROWS_ON_ACCELERATORS = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenScores:
    """What the distribution p before each target says; float32 [B, T], 0 where the mask is False."""

    # These have gradients:
    logprobs: Array  # log p(target)
    normalizers: Array  # log sum exp of the logits
    mean_logits: Array  # over the vocabulary
    # These have none:
    entropy: Array  # of p
    log_collision: Array  # log sum p^2 (WPO, arXiv 2406.11827)
    top1: Array  # 1.0 where the target is the likeliest token


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
    chunk: positions taken at a time; by default `default_chunk`.
    """
    (out,) = _masked(hidden, table, targets, softcap, mask, chunk, False)
    return out


def token_scores(
    hidden: Float[Array, "B T D"],
    table: Float[Array, "V D"],
    targets: Int[Array, "B T"],
    *,
    softcap: float | None,
    mask: Bool[Array, "B T"] | None = None,
    chunk: int | None = None,
) -> TokenScores:
    """`token_logprobs` and what else a loss or a log may ask of the same logits; arguments as there."""
    names = [field.name for field in dataclasses.fields(TokenScores)]
    found = _masked(hidden, table, targets, softcap, mask, chunk, True)
    return TokenScores(**dict(zip(names, found, strict=True)))


def default_chunk(vocab_size: int) -> int:
    """Positions taken at a time on this platform; of 262 144 entries 64 MiB on CPU, else 512 MiB."""
    least = _LEAST_ROWS.get(platform(), LEAST_ROWS_ON_ACCELERATORS)
    return max(least, _CHUNK_LOGITS // vocab_size)


def _masked(
    hidden: Array,
    table: Array,
    targets: Array,
    softcap: float | None,
    mask: Array | None,
    chunk: int | None,
    scores: bool,
) -> list[Array]:
    size = chunk or default_chunk(table.shape[0])
    keep = jnp.ones(targets.shape, bool) if mask is None else mask
    mesh = mesh_over(targets.shape)
    cut = PartitionSpec() if mesh is None else spec(("vocab", "embed"), table.shape, mesh)
    axis, columns = (*cut, None, None)[:2]

    @jax.named_scope(SCOPE)
    def own(hidden: Array, targets: Array, keep: Array, table: Array) -> list[Array]:
        rows = targets.size
        if columns is not None:
            # By hand: the compiler would gather the float32 table and cast it then, and sum its whole gradient
            # on every device.
            table = jax.lax.all_gather(table, columns, axis=1, tiled=True)
        found = _scored(
            _Settings(softcap, min(size, rows), scores, axis),
            hidden.reshape(rows, -1),
            table,
            targets.reshape(-1),
            keep.reshape(-1),
        )
        return [values.reshape(targets.shape) for values in found]

    table = table.astype(hidden.dtype)
    found: list[Array] = over_tokens(own, (hidden, targets, keep), (table,), (cut,))
    return found


class _Settings(NamedTuple):
    softcap: float | None
    chunk: int  # positions
    scores: bool  # all of TokenScores, or log-probabilities alone
    axis: str | None  # of the mesh, that cuts the vocabulary

    def sum(self, values: Array) -> Array:
        """Over the parts of the vocabulary."""
        return values if self.axis is None else jax.lax.psum(values, self.axis)

    def largest(self, values: Array) -> Array:
        """Over the parts of the vocabulary."""
        return values if self.axis is None else jax.lax.pmax(values, self.axis)

    def first(self, part: int) -> Array | int:
        """The entry of the vocabulary that this part, of so many, starts with."""
        return 0 if self.axis is None else jax.lax.axis_index(self.axis) * part

    def vocab_size(self, part: int) -> int:
        """Entries of all parts together, of so many each."""
        return part * (1 if self.axis is None else jax.lax.axis_size(self.axis))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scored(
    settings: _Settings, hidden: Array, table: Array, targets: Array, keep: Array
) -> tuple[Array, ...]:
    return _forward(settings, hidden, table, targets, keep)[0]


def _plan(keep: Array, chunk: int) -> tuple[Array, Array]:
    """Positions with the wanted ones first, padded to whole chunks with the out-of-range index M (which
    reads clip and writes drop); and how many chunks hold a wanted one."""
    order = jnp.argsort(~keep, stable=True).astype(jnp.int32)
    order = jnp.pad(order, (0, -order.size % chunk), constant_values=order.size)
    return order, -(-jnp.sum(keep, dtype=jnp.int32) // chunk)


def _chunk_logits(softcap: float | None, rows: Array, table: Array) -> Array:
    logits = jnp.einsum("cd,vd->cv", rows, table, preferred_element_type=jnp.float32)
    return soft_cap(logits, softcap)


def _chunk_scores(settings: _Settings, logits: Array, targets: Array) -> tuple[Array, ...]:
    """(log-probability, normaliser) of each row, or all of TokenScores in order.

    logits: of this device's part of the vocabulary; targets: counted from its first entry.
    """
    inside = (targets >= 0) & (targets < logits.shape[1])
    picked = jnp.take_along_axis(logits, targets[:, None], axis=-1, mode="clip")[:, 0]
    wanted = settings.sum(jnp.where(inside, picked, 0.0))
    # One exponential for all sums over the vocabulary.
    largest = settings.largest(logits.max(-1))
    weights = jnp.exp(logits - largest[:, None])
    total = settings.sum(weights.sum(-1))
    normalizer = largest + jnp.log(total)
    if not settings.scores:
        return wanted - normalizer, normalizer
    vocab_size = settings.vocab_size(logits.shape[1])
    return (
        wanted - normalizer,
        normalizer,
        settings.sum(logits.sum(-1)) / vocab_size,
        normalizer - settings.sum((weights * logits).sum(-1)) / total,
        jnp.log(settings.sum(jnp.square(weights).sum(-1))) - 2 * jnp.log(total),
        (wanted >= largest).astype(jnp.float32),
    )


def _forward(
    settings: _Settings, hidden: Array, table: Array, targets: Array, keep: Array
) -> tuple[tuple[Array, ...], Any]:
    chunk, scores = settings.chunk, settings.scores
    order, chunks = _plan(keep, chunk)
    local = targets - settings.first(table.shape[0])

    def body(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        at = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)
        logits = _chunk_logits(settings.softcap, hidden.at[at].get(mode="clip"), table)
        found = _chunk_scores(settings, logits, local.at[at].get(mode="clip"))
        return tuple(
            into.at[at].set(new, mode="drop") for into, new in zip(carry, found, strict=True)
        )

    number = len(dataclasses.fields(TokenScores)) if scores else 2
    zeros = (jnp.zeros(targets.shape, jnp.float32),) * number
    found = jax.lax.fori_loop(0, chunks, body, zeros)
    # The last chunk may reach past the wanted positions.
    masked = tuple(jnp.where(keep, values, 0.0) for values in found)
    return masked if scores else masked[:1], (hidden, table, targets, keep, found[1])


def _backward(settings: _Settings, saved: Any, grads: tuple[Array, ...]) -> tuple[Any, ...]:
    softcap, chunk, scores, _ = settings
    hidden, table, targets, keep, normalizers = saved
    order, chunks = _plan(keep, chunk)
    local = targets - settings.first(table.shape[0])
    # What all devices of the axis were given the same, shard_map says was given to each in part.
    grads = tuple(settings.sum(grad) for grad in grads)
    # Of the target's logit, of the normaliser, and of the mean: what an entry of a row of logits collects.
    of_target = jnp.where(keep, grads[0], 0.0)
    of_normalizer = jnp.where(keep, grads[1], 0.0) - of_target if scores else -of_target
    of_mean = (
        jnp.where(keep, grads[2], 0.0) / settings.vocab_size(table.shape[0]) if scores else None
    )

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_hidden, d_table = carry
        at = jax.lax.dynamic_slice_in_dim(order, i * chunk, chunk)

        def column(values: Array) -> Array:
            return values.at[at].get(mode="fill", fill_value=0.0)[:, None]

        rows = hidden.at[at].get(mode="clip")
        logits = _chunk_logits(softcap, rows, table)
        probabilities = jnp.exp(logits - normalizers.at[at].get(mode="clip")[:, None])
        wanted = local.at[at].get(mode="clip")[:, None]
        columns = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        d_logits = jnp.where(columns == wanted, column(of_target), 0.0)
        d_logits += column(of_normalizer) * probabilities
        if of_mean is not None:
            d_logits += column(of_mean)
        if softcap is not None:
            d_logits = d_logits * (1 - jnp.square(logits / softcap))
        # A position that was never computed has normaliser 0 and exp may overflow; its gradient is 0.
        wanted_row = keep.at[at].get(mode="fill", fill_value=False)[:, None]
        d_logits = jnp.where(wanted_row, d_logits, 0.0).astype(table.dtype)
        d_rows = jnp.einsum("cv,vd->cd", d_logits, table, preferred_element_type=jnp.float32)
        d_table += jnp.einsum("cv,cd->vd", d_logits, rows, preferred_element_type=jnp.float32)
        return d_hidden.at[at].set(d_rows, mode="drop"), d_table

    start = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(table.shape, jnp.float32)
    d_hidden, d_table = jax.lax.fori_loop(0, chunks, body, start)
    none = np.zeros(targets.shape, jax.dtypes.float0)
    return d_hidden.astype(hidden.dtype), d_table.astype(table.dtype), none, none


_scored.defvjp(_forward, _backward)
