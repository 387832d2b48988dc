"""Mesh axes, and the one table that says which of them cuts which axis of a parameter.

Parameters name their axes where they are declared (`model/layers.py`); here alone those names meet a mesh.
Batches are cut along their rows and tokens. Nothing is replicated because it happened not to divide: that is
an error. Not here: what model code calls under a mesh (`collectives.py`), what runs on which device
(`parallel/`), how processes find each other (`distributed.py`).
"""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from gemma4_jax.errors import UserError

# data: rows, parameters whole. fsdp: rows, and parameters in slices that are gathered as they are used. expert:
# rows, experts, and the rest as fsdp does. seq: positions. tensor: heads, widths, and the vocabulary.
AXES = ("data", "fsdp", "expert", "seq", "tensor")
# The axes that cut a batch along its rows, and the one that cuts rows along their tokens.
BATCH = ("data", "fsdp", "expert")
TOKENS = "seq"
# Logical axis of a parameter -> the mesh axes that cut it, of which each cuts an array once: those of the axes
# that have but one come first. (): never cut.
Rules = Mapping[str, tuple[str, ...]]
RULES: Rules = {
    "vocab": ("tensor",),
    # The table of per-layer inputs has no axis of width d_model.
    "per_layer_vocab": ("fsdp", "expert"),
    "embed": ("fsdp", "expert"),
    "norm": (),  # a few numbers a layer: gathering them would cost more than keeping them
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "experts": ("expert",),
    "expert_mlp": ("tensor",),
    "per_layer_input": (),
    "layers": (),
    "run": (),
    # Of what decoding remembers: rows as those of a batch, positions of full layers, heads.
    "cache_rows": BATCH,
    "cache_positions": (TOKENS,),
    "cache_heads": ("tensor",),
}


# In decoding a step reads every weight for a few tokens: `expert` cuts experts alone, and what every token
# meets is whole on each of its devices instead of being gathered at every step.
DECODING_RULES: Rules = {
    **RULES,
    "embed": ("fsdp",),
    "per_layer_vocab": ("fsdp",),
}

AnyMesh = Mesh | AbstractMesh
# XLA on TPU gathers slices whose width is a multiple of this (libtpu 0.0.42).
_TPU_SLICE = 8


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the five axes over the first devices; sizes: by axis, 1 where an axis is not named.

    devices: by default those of this run; others are those that programs are compiled for ahead of time. Where
    they are on several slices, which a slower network joins, `data` goes over slices, or `fsdp` with it.
    """
    devices = jax.devices() if devices is None else devices
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    count = math.prod(shape)
    if count > len(devices):
        raise UserError(f"the mesh {dict(sizes)} needs {count} devices, there are {len(devices)}")
    devices, types = devices[:count], (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        return Mesh(_over_slices(shape, devices, slices), AXES, axis_types=types)
    try:
        return jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    except NotImplementedError:
        # An axis that is no product of axes of the chips' torus: 16 of 4 x 8 x 8.
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(placed, AXES, axis_types=types)


def _over_slices(shape: tuple[int, ...], devices: Sequence[Any], slices: int) -> Any:
    """Devices in the shape of a mesh: what crosses between slices is a gradient's sum, or `fsdp`'s gathers."""
    outer = [1] * len(shape)
    outer[0] = math.gcd(shape[0], slices)
    outer[1] = slices // outer[0]
    if shape[1] % outer[1]:
        raise UserError(
            f"the devices are {slices} slices: mesh.data x mesh.fsdp must be a multiple of that, they are "
            f"{shape[0]} and {shape[1]}"
        )
    inner = [size // over for size, over in zip(shape, outer, strict=True)]
    return mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices, allow_split_physical_axes=True
    )


def read_sizes(text: str, devices: int) -> dict[str, int]:
    """Sizes by axis out of "tensor=4,data=-1"; -1: what the others leave of so many devices.

    Raises UserError.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (word.strip() for word in part.partition("="))
        if (
            axis not in AXES
            or axis in sizes
            or not (size == "-1" or (size.isdigit() and int(size)))
        ):
            raise UserError(
                f"a mesh is axis=number,axis=number with each of {', '.join(AXES)} at most once, "
                f"and -1 for what is left; got {part!r}"
            )
        sizes[axis] = int(size)
    fixed = math.prod(size for size in sizes.values() if size > 0)
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise UserError(
            f"the mesh {text} has {len(open_axes)} axes of -1; one can take what is left"
        )
    if fixed > devices:
        raise UserError(f"the mesh {text} needs {fixed} devices, there are {devices}")
    if open_axes and devices % fixed:
        raise UserError(
            f"the mesh {text} leaves {open_axes[0]} no whole number: {fixed} does not divide the {devices} "
            "devices"
        )
    return {axis: devices // fixed if size == -1 else size for axis, size in sizes.items()}


def rows_over(mesh: AnyMesh | None) -> int:
    """In how many parts a mesh cuts a batch; 1 where there is none."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in BATCH)


def spec(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh: AnyMesh,
    rules: Rules = RULES,
) -> PartitionSpec:
    """How an array with logical axes `names` is cut; UserError where mesh axes do not divide it.

    Axes of size 1 (the scales of quantised matrices) are not cut. Nor are K/V heads where `tensor` has
    a multiple of their number of devices: they are small, and every device of the axis has all of them.
    """
    for name in names:
        if name is not None and name not in rules:
            raise KeyError(f"no rule for the logical axis {name!r}; known: {', '.join(rules)}")
    cuts = [
        () if name is None or size == 1 else rules[name]
        for name, size in zip(names, shape, strict=True)
    ]
    taken = {rule[0] for rule in cuts if len(rule) == 1}
    cut: list[str | tuple[str, ...] | None] = []
    for name, size, rule in zip(names, shape, cuts, strict=True):
        mine = tuple(
            axis for axis in rule if mesh.shape[axis] > 1 and (len(rule) == 1 or axis not in taken)
        )
        if name == "kv_heads" and mesh.shape["tensor"] > size and not mesh.shape["tensor"] % size:
            mine = ()
        check_divides(mesh, mine, size, f"axis {name!r}")
        taken |= set(mine)
        cut.append(mine[0] if len(mine) == 1 else mine or None)
    return PartitionSpec(*cut)


def check_divides(mesh: AnyMesh, axes: Sequence[str], size: int, what: str) -> None:
    """UserError unless the mesh axes, taken together, cut `size` (of `what`) in equal parts."""
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if size % parts:
        legal = [n for n in range(1, min(size, 4 * parts) + 1) if size % n == 0]
        near = sorted(sorted(legal, key=lambda n: abs(n - parts))[:3])
        named = " x ".join(f"mesh.{axis}" for axis in axes)
        raise UserError(
            f"{named} is {parts}, which does not divide the {size} of {what}; "
            f"nearest that do: {', '.join(map(str, near))}"
        )


def slice_note(d_model: int, parts: int) -> str:
    """What to know of `parts` devices of a TPU that share what is cut along D; "" if XLA gathers their slices.

    Where a slice's width is no multiple of 8, it sums whole matrices instead (docs/ahead_of_time.md).
    """
    width = d_model // parts
    if parts == 1 or width % _TPU_SLICE == 0:
        return ""
    found = (
        f"mesh.fsdp x mesh.expert is {parts}: slices of D are {width} wide, no multiple of {_TPU_SLICE}, and "
        "XLA on TPU sums whole matrices in the place of gathering slices, twice the bytes"
    )
    fewer = [n for n in range(2, parts) if parts % n == 0 and d_model // n % _TPU_SLICE == 0]
    return f"{found}; {fewer[-1]} would not have that" if fewer else found


def shardings(axes: Any, tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A NamedSharding for every array of `tree`; axes: the same nested dict with names as leaves.

    Where the tree has a node of several arrays for one matrix (a quantised one), each is cut by that matrix's
    names.
    """
    if isinstance(tree, Mapping):
        return {name: shardings(axes[name], part, mesh, rules) for name, part in tree.items()}
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(axes, leaf.shape, mesh, rules)), tree)


def batch_spec() -> PartitionSpec:
    """[B, ...]: rows over all axes that cut batches."""
    return PartitionSpec(BATCH)


def tokens_spec() -> PartitionSpec:
    """[B, T, ...]: rows as `batch_spec`, and each along its tokens."""
    return PartitionSpec(BATCH, TOKENS)


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh over which the arrays of a tree are placed; None where they are on one device."""
    for leaf in jax.tree.leaves(tree):
        placed = getattr(leaf, "sharding", None)
        if isinstance(placed, NamedSharding) and isinstance(placed.mesh, Mesh):
            return placed.mesh if placed.mesh.size > 1 else None
    return None


def over(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    """`jax.set_mesh` of a mesh, or nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def current_mesh() -> Any:
    """The mesh that `jax.set_mesh` set, if it has more than one device; else None."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """Of the devices that programs are made for: those of the mesh that is set, else the process's own."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def replicated_bytes(tree: Any) -> tuple[int, int]:
    """(bytes of the arrays of which every device holds all, bytes of all arrays)."""
    leaves = jax.tree.leaves(tree)
    whole = sum(leaf.nbytes for leaf in leaves if leaf.sharding.is_fully_replicated)
    return whole, sum(leaf.nbytes for leaf in leaves)
