"""Mesh axes, and the one table that says which of them cuts which axis of a parameter.

Parameters name their axes where they are declared (`model/layers.py`); here alone those names meet a mesh.
Batches are cut along their rows. Nothing is replicated because it happened not to divide: that is an error.
Not here: what runs on which device (`parallel/`), how processes find each other (`distributed.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gemma4_jax.errors import UserError

# data: rows, parameters whole. fsdp: rows, and parameters in slices that are gathered as they are used. expert,
# seq, tensor: experts, positions, and heads and widths.
AXES = ("data", "fsdp", "expert", "seq", "tensor")
# The axes that cut a batch along its rows.
BATCH = ("data", "fsdp")
# Logical axis of a parameter -> mesh axis; None: never cut.
RULES: Mapping[str, str | None] = {
    "vocab": "tensor",
    "per_layer_vocab": "fsdp",  # the table of per-layer inputs has no axis of width d_model
    "embed": "fsdp",
    "norm": None,  # a few numbers a layer: gathering them would cost more than keeping them
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "experts": "expert",
    "expert_mlp": "tensor",
    "per_layer_input": None,
    "layers": None,
    "run": None,
}


def make_mesh(sizes: Mapping[str, int]) -> Mesh:
    """A mesh of the five axes over the first devices; sizes: by axis, 1 where an axis is not named."""
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    count = math.prod(shape)
    if count > jax.device_count():
        raise UserError(
            f"the mesh {dict(sizes)} needs {count} devices, there are {jax.device_count()}"
        )
    return jax.make_mesh(
        shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=jax.devices()[:count]
    )


def rows_over(mesh: Any) -> int:
    """In how many parts a mesh cuts a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH)


def spec(
    names: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """How an array with logical axes `names` is cut; UserError where a mesh axis does not divide it.

    Axes of size 1 (the scales of quantised matrices) are not cut.
    """
    cut: list[str | None] = []
    for name, size in zip(names, shape, strict=True):
        if name is not None and name not in RULES:
            raise KeyError(f"no rule for the logical axis {name!r}; known: {', '.join(RULES)}")
        axis = None if name is None else RULES[name]
        if axis is None or mesh.shape[axis] == 1 or size == 1:
            cut.append(None)
            continue
        parts = mesh.shape[axis]
        if size % parts:
            legal = [n for n in range(1, min(size, 4 * parts) + 1) if size % n == 0]
            near = sorted(sorted(legal, key=lambda n: abs(n - parts))[:3])
            raise UserError(
                f"mesh.{axis} is {parts}, which does not divide the {size} of axis {name!r}; "
                f"nearest that do: {', '.join(map(str, near))}"
            )
        cut.append(axis)
    return PartitionSpec(*cut)


def shardings(axes: Any, tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every array of `tree`; axes: the same nested dict with names as leaves.

    Where the tree has a node of several arrays for one matrix (a quantised one), each is cut by that matrix's
    names.
    """
    if isinstance(tree, Mapping):
        return {name: shardings(axes[name], part, mesh) for name, part in tree.items()}
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(axes, leaf.shape, mesh)), tree)


def batch_spec() -> PartitionSpec:
    """Rows over all axes that cut batches."""
    return PartitionSpec(BATCH)


def current_mesh() -> Any:
    """The mesh that `jax.set_mesh` set, if it has more than one device; else None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def cut_rows(x: jax.Array) -> jax.Array:
    """x [B, ...], said to be cut along its rows; x itself where there is no mesh, or B does not divide."""
    mesh = current_mesh()
    if mesh is None or x.shape[0] % rows_over(mesh):
        return x
    return jax.lax.with_sharding_constraint(x, batch_spec())


def over_rows(
    function: Callable[..., Any], rows: Sequence[jax.Array], whole: Sequence[Any] = ()
) -> Any:
    """function(*rows, *whole) on every device's own rows; a plain call where there is no mesh.

    rows: arrays [B, ...]; whole: pytrees that every device gets all of. The results are arrays [B, ...]. For
    what sorts or loops over tokens, which a partitioner would gather. A B that does not divide (a last,
    smaller batch of a measurement) is computed everywhere.
    """
    mesh = current_mesh()
    if mesh is None or rows[0].shape[0] % rows_over(mesh):
        return function(*rows, *whole)
    specs = (*(batch_spec() for _ in rows), *(PartitionSpec() for _ in whole))
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=batch_spec(), check_vma=False
    )
    return mapped(*rows, *whole)


def replicated_bytes(tree: Any) -> tuple[int, int]:
    """(bytes of the arrays of which every device holds all, bytes of all arrays)."""
    leaves = jax.tree.leaves(tree)
    whole = sum(leaf.nbytes for leaf in leaves if leaf.sharding.is_fully_replicated)
    return whole, sum(leaf.nbytes for leaf in leaves)
