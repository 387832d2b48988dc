"""What model code calls where arrays are cut over a mesh; plain calls where there is none.

Left to the compiler, a lookup in a sharded table gathers activations, and what sorts or loops over tokens
gathers them too: these are written with `shard_map`. Not here: the rules (`sharding.py`), attention over cut
rows and the exchange of experts' tokens (`parallel/`).

Letters: B batch, T tokens, V vocabulary, D d_model.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from gemma4_jax.sharding import (
    BATCH,
    RULES,
    TOKENS,
    Rules,
    batch_spec,
    current_mesh,
    rows_over,
    spec,
    tokens_spec,
)


def mesh_over(shape: Sequence[int]) -> Any:
    """The current mesh, if it cuts an array of shape [B, T, ...]; else None.

    It does not where it has one device, and where rows do not divide: a last, smaller batch of a measurement.
    Those are computed everywhere.
    """
    mesh = current_mesh()
    return None if mesh is None or shape[0] % rows_over(mesh) else mesh


def spec_of_tokens(shape: Sequence[int], mesh: Any) -> PartitionSpec:
    """How an array [B, T, ...] is cut by a mesh: rows, and tokens where they divide.

    They do not in a step of decoding, which has one; every device of `seq` then computes it.
    """
    return batch_spec() if shape[1] % mesh.shape[TOKENS] else tokens_spec()


def cut_tokens(x: Array) -> Array:
    """x [B, T, ...], said to be cut along its rows and tokens; x itself where no mesh does."""
    mesh = mesh_over(x.shape)
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, spec_of_tokens(x.shape, mesh))


def on_every_device(tree: Any) -> Any:
    """The arrays of a tree, whole on every device of the current mesh."""
    if current_mesh() is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec()), tree)


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
    cut = spec_of_tokens(tokens[0].shape, mesh)
    mapped = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(*(cut for _ in tokens), *whole_specs),
        out_specs=cut,
        check_vma=False,
    )
    return mapped(*tokens, *whole)


def over_rows(function: Callable[..., Any], *rows: Any) -> Any:
    """function(*rows) on every device's own rows; a plain call where no mesh cuts them.

    rows: pytrees of arrays [B, ...], the first of them an array; the result is one, too. Left to the compiler,
    the best of each row of a cut array are looked for in all rows, gathered.
    """
    mesh = mesh_over(rows[0].shape)
    if rows_over(mesh) == 1:
        return function(*rows)
    cut = batch_spec()
    mapped = jax.shard_map(function, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False)
    return mapped(*rows)


def look_up(
    table: Array,
    names: Sequence[str | None],
    tokens: Int[Array, "B T"],
    dtype: Any,
    rules: Rules = RULES,
) -> Array:
    """Rows [B, T, ...] of a table [V, ...] whose logical axes are `names`, cut by `rules`, in `dtype`.

    Where the mesh cuts the table, ids travel to the slices and the slices' parts of rows back, in `dtype`: no
    device ever has the table whole, or more than whole rows of its own tokens, twice.
    """
    mesh = mesh_over(tokens.shape)
    if mesh is None:
        return jnp.take(table, tokens, axis=0).astype(dtype)
    cut = spec(names, table.shape, mesh, rules)
    by_row, by_column = (_axes(part) for part in (*cut, None)[:2])
    peers = tuple(axis for axis in (*by_row, *by_column) if axis in BATCH)

    def own(table: Array, tokens: Array) -> Array:
        ids = jax.lax.all_gather(tokens, peers) if peers else tokens[None]  # [n, b, t]
        first = jax.lax.axis_index(by_row) * table.shape[0] if by_row else 0
        if peers and not by_column:
            return _of_owners(peers, table, ids - first, dtype)
        found = _own_rows(table, ids - first, dtype)
        alone = tuple(axis for axis in by_row if axis not in BATCH)
        if alone:
            found = jax.lax.psum(found, alone)
        return jax.lax.all_to_all(found, peers, 0, 3, tiled=True)[0] if peers else found[0]

    rows = spec_of_tokens(tokens.shape, mesh)
    mapped = jax.shard_map(own, mesh=mesh, in_specs=(cut, rows), out_specs=rows, check_vma=False)
    return mapped(table, tokens)


def _own_rows(table: Array, ids: Array, dtype: Any) -> Array:
    """Rows of this slice of a table, 0 for ids that are not in it."""
    found = jnp.take(table, ids, axis=0, mode="clip").astype(dtype)
    mine = (ids >= 0) & (ids < table.shape[0])
    return jnp.where(mine.reshape(*ids.shape, *(1,) * (table.ndim - 1)), found, 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _of_owners(peers: tuple[str, ...], table: Array, ids: Array, dtype: Any) -> Array:
    """Rows [b, t, ...] of this device's tokens, out of the slices of all peers.

    ids: [n, b, t], of every peer's tokens, counted from the slice's first row. What a token gets is put
    together on its way around the ring of peers, which moves as much as scattering the sum of n arrays would;
    but those, E2B's 35 layers' inputs for 8192 tokens of each of 64 peers, are 19 GB in float32.
    """
    me, count = jax.lax.axis_index(peers), ids.shape[0]

    # A token's row starts at the peer after its own, and comes home last.
    def step(found: Array, number: Array) -> tuple[Array, None]:
        found = _shifted(found, peers, count)
        return found + _own_rows(table, ids[(me - 1 - number) % count], dtype), None

    start = _own_rows(table, ids[(me - 1) % count], dtype)
    return jax.lax.scan(step, start, jnp.arange(1, count))[0]


def _of_owners_forward(
    peers: tuple[str, ...], table: Array, ids: Array, dtype: Any
) -> tuple[Array, Any]:
    return _of_owners(peers, table, ids, dtype), (table, ids)


def _of_owners_backward(
    peers: tuple[str, ...], dtype: Any, saved: Any, grad: Array
) -> tuple[Array, None]:
    table, ids = saved
    me, count = jax.lax.axis_index(peers), ids.shape[0]

    def add(of_table: Array, grad: Array, whose: Array) -> Array:
        at = jnp.where(
            ids[whose] < 0, table.shape[0], ids[whose]
        )  # negative ones count from the end
        return of_table.at[at].add(grad.astype(of_table.dtype), mode="drop")

    def step(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        grad, of_table = carry
        grad = _shifted(grad, peers, count)
        return (grad, add(of_table, grad, (me - number) % count)), None

    start = grad, add(jnp.zeros(table.shape, table.dtype), grad, me)
    (_, of_table), _ = jax.lax.scan(step, start, jnp.arange(1, count))
    return of_table, None


_of_owners.defvjp(_of_owners_forward, _of_owners_backward)


def _shifted(x: Array, peers: tuple[str, ...], count: int) -> Array:
    """What the peer before this one has."""
    return jax.lax.ppermute(x, peers, [(i, (i + 1) % count) for i in range(count)])


def _axes(part: Any) -> tuple[str, ...]:
    """Mesh axes in an entry of a PartitionSpec."""
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
