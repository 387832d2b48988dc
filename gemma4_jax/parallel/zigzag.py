"""The order of a row's tokens over the mesh axis `seq`, such that causal work is the same on every device.

A row is 2P chunks; device d holds chunks d and 2P - 1 - d, an early one and a late one. Token ids, positions
and facts are permuted once, before the model; what is computed from them stays in that order until `unzigzag`.

Letters: P parts (devices along `seq`), T tokens of a row.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from gemma4_jax.errors import UserError

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
