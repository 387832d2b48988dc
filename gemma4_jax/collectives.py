"""What model code calls where arrays are cut over a mesh; plain calls where there is none.

Left to the compiler, a lookup in a sharded table gathers activations, and what sorts or loops over tokens
gathers them too: these are written with `shard_map`. Not here: the rules (`sharding.py`), attention over cut
rows and the exchange of experts' tokens (`parallel/`).

Letters: B batch, T tokens, V vocabulary, D d_model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from gemma4_jax.sharding import BATCH, TOKENS, current_mesh, rows_over, spec, tokens_spec


def mesh_over(shape: Sequence[int]) -> Any:
    """The current mesh, if it cuts an array of shape [B, T, ...]; else None.

    It does not where it has one device, and where rows or tokens do not divide: a last, smaller batch of a
    measurement, the one token of a decoding step. Those are computed everywhere.
    """
    mesh = current_mesh()
    if mesh is None:
        return None
    return None if shape[0] % rows_over(mesh) or shape[1] % mesh.shape[TOKENS] else mesh


def cut_tokens(x: Array) -> Array:
    """x [B, T, ...], said to be cut along its rows and tokens; x itself where no mesh does."""
    if mesh_over(x.shape) is None:
        return x
    return jax.lax.with_sharding_constraint(x, tokens_spec())


def over_tokens(
    function: Callable[..., Any],
    tokens: Sequence[Array],
    whole: Sequence[Any] = (),
    specs: Sequence[Any] | None = None,
) -> Any:
    """function(*tokens, *whole) on every device's own tokens; a plain call where no mesh cuts them.

    tokens: arrays [B, T, ...]; whole: pytrees, of which every device gets what `specs` say, by default all.
    The results are arrays [B, T, ...].
    """
    mesh = mesh_over(tokens[0].shape)
    if mesh is None:
        return function(*tokens, *whole)
    whole_specs = tuple(specs or (PartitionSpec() for _ in whole))
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(*(tokens_spec() for _ in tokens), *whole_specs),
        out_specs=tokens_spec(),
        check_vma=False,
    )
    return mapped(*tokens, *whole)


def look_up(table: Array, names: Sequence[str | None], tokens: Int[Array, "B T"]) -> Array:
    """Rows [B, T, ...] of a table [V, ...] whose logical axes are `names`.

    Where the mesh cuts the table, ids travel to the slices and the slices' parts of rows back: no device ever
    has the table whole, or rows of more tokens than its own and its peers'.
    """
    mesh = mesh_over(tokens.shape)
    if mesh is None:
        return jnp.take(table, tokens, axis=0)
    cut = spec(names, table.shape, mesh)
    by_row, by_column = (_axes(part) for part in (*cut, None)[:2])
    peers = tuple(axis for axis in (*by_row, *by_column) if axis in BATCH)

    def own(table: Array, tokens: Array) -> Array:
        ids = jax.lax.all_gather(tokens, peers) if peers else tokens[None]  # [n, b, t]
        first = jax.lax.axis_index(by_row) * table.shape[0] if by_row else 0
        local = ids - first
        found = jnp.take(table, local, axis=0, mode="clip")
        if by_row:
            mine = (local >= 0) & (local < table.shape[0])
            found = jnp.where(mine.reshape(*ids.shape, *(1,) * (found.ndim - 3)), found, 0)
        alone = tuple(axis for axis in by_row if axis not in BATCH)
        if alone:
            found = jax.lax.psum(found, alone)
        if not peers:
            return found[0]
        if by_column:
            return jax.lax.all_to_all(found, peers, 0, 3, tiled=True)[0]
        return jax.lax.psum_scatter(found, peers)

    mapped = jax.shard_map(
        own, mesh=mesh, in_specs=(cut, tokens_spec()), out_specs=tokens_spec(), check_vma=False
    )
    return mapped(table, tokens)


def _axes(part: Any) -> tuple[str, ...]:
    """Mesh axes in an entry of a PartitionSpec."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
