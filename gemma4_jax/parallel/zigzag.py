"""The order of a row's tokens over the mesh axis `seq`, such that causal work is the same on every device.

A row is 2P chunks; device d holds chunks d and 2P - 1 - d, an early one and a late one. Token ids, positions
and facts are permuted once, as they enter the model (`arrange`); what is computed from them stays in that order
until hidden states leave it (`restore`).

Letters: P parts (devices along `seq`), T tokens of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array

from gemma4_jax.errors import UserError
from gemma4_jax.sharding import BATCH, current_mesh, rows_over

SEQ = "seq"


def chunk_order(parts: int) -> list[int]:
    """The chunks of a row as the devices hold them, two each: 0, 2P - 1, 1, 2P - 2, ..."""
    return [chunk for d in range(parts) for chunk in (d, 2 * parts - 1 - d)]


def zigzag(tree: Any, parts: int, axis: int = 1) -> Any:
    """Rows in the order in which P devices hold them: chunks 0, 2P - 1, 1, 2P - 2, ... of 2P equal ones.

    tree: an array of numpy or jax, traced or not, or a pytree of them (TokenFacts), tokens on `axis`. An even
    cut into P parts then gives device d the chunks d and 2P - 1 - d. Raises UserError where 2P does not divide.
    """
    return _reordered(tree, chunk_order(parts), axis)


def unzigzag(tree: Any, parts: int, axis: int = 1) -> Any:
    """Rows in their own order again."""
    return _reordered(tree, np.argsort(chunk_order(parts)), axis)


def _reordered(tree: Any, order: Any, axis: int) -> Any:
    def one(x: Any) -> Any:
        check_tokens(x.shape[axis], len(order) // 2)
        chunks = x.reshape(*x.shape[:axis], len(order), -1, *x.shape[axis + 1 :])
        return chunks.take(np.asarray(order), axis=axis).reshape(x.shape)

    return jax.tree.map(one, tree)


def arrange(tree: Any) -> Any:
    """Arrays [B, T, ...] under the current mesh, from row order to that of `zigzag`: two halves move."""
    return jax.tree.map(functools.partial(_moved, _enter), tree)


def restore(tree: Any) -> Any:
    """Arrays [B, T, ...] under the current mesh, back in row order."""
    return jax.tree.map(functools.partial(_moved, _leave), tree)


def _moved(move: Callable[[int, Array], Array], x: Array) -> Array:
    mesh = current_mesh()
    if mesh is None or mesh.shape[SEQ] == 1:
        return x
    check_tokens(x.shape[1], mesh.shape[SEQ])
    cut = PartitionSpec(None if x.shape[0] % rows_over(mesh) else BATCH, SEQ)
    moved: Array = jax.shard_map(
        functools.partial(move, mesh.shape[SEQ]),
        mesh=mesh,
        in_specs=cut,
        out_specs=cut,
        check_vma=False,
    )(x)
    return moved


def _holders(parts: int, odd: int) -> list[tuple[int, int]]:
    """(device e, the device that holds chunk 2e + odd in zig-zag order)."""
    chunks = [2 * e + odd for e in range(parts)]
    return [(e, c if c < parts else 2 * parts - 1 - c) for e, c in enumerate(chunks)]


def _enter(parts: int, x: Array) -> Array:
    """[b, 2 c, ...]: chunks 2e and 2e + 1 of device e -> chunks d and 2P - 1 - d of device d."""
    even, odd = (
        jax.lax.ppermute(half, SEQ, _holders(parts, number))
        for number, half in enumerate(jnp.split(x, 2, axis=1))
    )
    early_is_even = jax.lax.axis_index(SEQ) % 2 == 0
    early, late = jnp.where(early_is_even, even, odd), jnp.where(early_is_even, odd, even)
    return jnp.concatenate([early, late], axis=1)


def _leave(parts: int, x: Array) -> Array:
    """The way back."""
    early, late = jnp.split(x, 2, axis=1)
    early_is_even = jax.lax.axis_index(SEQ) % 2 == 0
    halves = jnp.where(early_is_even, early, late), jnp.where(early_is_even, late, early)
    back = (
        jax.lax.ppermute(half, SEQ, [(holder, e) for e, holder in _holders(parts, number)])
        for number, half in enumerate(halves)
    )
    return jnp.concatenate(list(back), axis=1)


def check_tokens(tokens: int, parts: int) -> None:
    """Raises UserError where rows of T tokens cannot be cut into 2P equal chunks."""
    if tokens % (2 * parts):
        down = tokens // (2 * parts) * 2 * parts
        lengths = [n for n in (down, down + 2 * parts) if n]
        cuts = [n for n in range(1, min(tokens, 4 * parts) + 1) if n == 1 or tokens % (2 * n) == 0]
        near = sorted(sorted(cuts, key=lambda n: abs(n - parts))[:3])
        raise UserError(
            f"mesh.{SEQ} is {parts}, which cuts rows into {2 * parts} equal chunks and does not divide "
            f"rows of {tokens} tokens; nearest lengths: {', '.join(map(str, lengths))}; nearest "
            f"mesh.{SEQ}: {', '.join(map(str, near))}"
        )
