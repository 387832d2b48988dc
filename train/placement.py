"""Where a run's arrays live: state cut as the table in gemma4_jax/sharding.py says, batches by rows
and tokens.

A mesh of one device goes the same way. Not here: the table, what a step computes (step.py).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs.checks import ConfigError
from configs.losses import RouterConfig
from configs.mesh import MeshConfig
from configs.schema import BatchConfig
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError
from gemma4_jax.parallel.zigzag import check_tokens
from gemma4_jax.sharding import (
    BATCH,
    TOKENS,
    batch_spec,
    make_mesh,
    replicated_bytes,
    rows_over,
    slice_note,
)
from train import offload as offloading
from train.losses import PER_TOKEN, Params
from train.step import TrainState


def open_mesh(config: MeshConfig) -> Mesh:
    """The mesh of a run, over all devices or as many as its sizes name."""
    mesh = make_mesh(mesh_sizes(config, jax.device_count()))
    if jax.process_count() > 1 and mesh.size != jax.device_count():
        raise UserError(
            f"the mesh has {mesh.size} devices and the {jax.process_count()} processes {jax.device_count()}; "
            "set mesh.fsdp to -1, or to what uses all of them"
        )
    return mesh


def mesh_sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """Size of every axis on so many devices; UserError where that cannot be."""
    try:
        return config.sizes(devices)
    except ConfigError as error:
        raise UserError(str(error)) from None


def check_batch(mesh: Mesh, batch: BatchConfig, max_length: int) -> None:
    """UserError unless every micro-batch has as many rows, and each row as many tokens, for every device."""
    parts, rows = rows_over(mesh), batch.rows // batch.accumulation
    if rows % parts:
        raise UserError(
            f"batch.rows is {batch.rows} in {batch.accumulation} micro-batches, {rows} rows each; the mesh "
            f"cuts them in {parts} ({' x '.join(BATCH)}), which must divide that: set batch.rows to a "
            f"multiple of {parts * batch.accumulation}, or the mesh smaller"
        )
    # Shorter lengths that rows may be padded to are multiples of 64.
    chunks = 2 * mesh.shape["seq"]
    if chunks > 2 and (max_length % chunks or 64 % chunks):
        check_tokens(max_length, mesh.shape["seq"])


def check_model(mesh: Mesh, config: ModelConfig, router: RouterConfig) -> None:
    """UserError where an axis has nothing to cut, or `router.capacity_factor` nothing to limit."""
    if mesh.shape["expert"] > 1 and config.moe is None:
        raise UserError(
            f"mesh.expert is {mesh.shape['expert']}, and this model has no experts: "
            "it must be 1 (mesh.fsdp cuts parameters and rows)"
        )
    if router.capacity_factor is not None and mesh.shape["expert"] == 1:
        why = (
            "this model has no experts: leave it out"
            if config.moe is None
            else "mesh.expert is 1: a device with all experts drops nothing; set mesh.expert, or leave it out"
        )
        raise UserError(f"router.capacity_factor is {router.capacity_factor}, and {why}")


def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array that this process has whole, placed; as it is if it lies there already."""
    where = leaf.sharding if isinstance(leaf, jax.Array) else None
    if isinstance(where, NamedSharding) and where.is_equivalent_to(sharding, leaf.ndim):
        return leaf
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def put_tree(tree: Any, shardings: Any) -> Any:
    """`put` leaf by leaf."""
    return jax.tree.map(put, tree, shardings)


def state_shardings(
    state: TrainState, params: Params, mesh: Mesh, offload: bool = False
) -> TrainState:
    """Shardings of a train state: of what mirrors a parameter, that parameter's; of counters and factored
    moments, all of it everywhere.

    state: arrays or shapes. params: shardings of the trained parameters. offload: moments are in host memory.
    """
    known: dict[tuple[str, ...], NamedSharding] = {
        _names(path): sharding for path, sharding in jax.tree_util.tree_leaves_with_path(params)
    }
    shapes = {
        _names(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state.params)
    }
    everywhere = NamedSharding(mesh, PartitionSpec())

    def one(path: Any, leaf: Any) -> NamedSharding:
        names = _names(path)
        for first in range(len(names)):
            tail = names[first:]
            if tail in known and shapes[tail] == leaf.shape:
                return known[tail]
        return everywhere

    found: TrainState = jax.tree_util.tree_map_with_path(one, state)
    if not offload:
        return found
    moments = offloading.shardings(state.opt_state, found.opt_state)
    return dataclasses.replace(found, opt_state=moments)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(part.key) for part in path if isinstance(part, jax.tree_util.DictKey))


def batch_shardings(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, NamedSharding]:
    """Of every array of a batch (or its shape): rows over what cuts batches, tokens over what cuts tokens."""
    return {name: NamedSharding(mesh, _spec_of(name, values)) for name, values in batch.items()}


def _spec_of(name: str, values: Any) -> PartitionSpec:
    """Of an array of a batch: rows, and the last axis where it is one of tokens."""
    if name not in PER_TOKEN:
        return batch_spec()
    return PartitionSpec(BATCH, *(None,) * (values.ndim - 2), TOKENS)


def row_share(mesh: Mesh) -> tuple[int, int]:
    """(which, of how many) equal parts of a batch's rows this process has to bring.

    Processes whose devices share rows (`seq` or `tensor` spans processes) bring the same.
    """
    blocks = mesh.devices.reshape(rows_over(mesh), -1)
    mine = [
        number
        for number, devices in enumerate(blocks)
        if any(device.process_index == jax.process_index() for device in devices)
    ]
    return mine[0] // len(mine), len(blocks) // len(mine)


def own_rows(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch of which this process has the rows of its `row_share`."""
    which, of = row_share(mesh)

    def place(name: str, rows: np.ndarray) -> jax.Array:
        sharding = NamedSharding(mesh, _spec_of(name, rows))
        if sharding.is_fully_addressable:
            return jax.device_put(rows, sharding)
        count = len(rows)

        def part(index: Any) -> np.ndarray:
            first, stop, _ = index[0].indices(count * of)
            return rows[first - which * count : stop - which * count, *index[1:]]

        return jax.make_array_from_callback((count * of, *rows.shape[1:]), sharding, part)

    return {name: place(name, rows) for name, rows in batch.items()}


def all_rows(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A batch that every process has whole: cut by rows if they divide, else given to every device."""
    uneven = len(next(iter(batch.values()))) % rows_over(mesh)
    return {
        name: put(
            values, NamedSharding(mesh, PartitionSpec() if uneven else _spec_of(name, values))
        )
        for name, values in batch.items()
    }


def describe(mesh: Mesh, state: Any) -> str:
    """One line: the mesh, and how much of the state every device holds whole."""
    axes = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    if not axes:
        return f"on 1 of {jax.device_count()} devices" if jax.device_count() > 1 else "on 1 device"
    whole, total = replicated_bytes(state)
    return (
        f"on {mesh.size} devices ({jax.process_count()} processes), {axes}; of {total / 1e6:,.1f} MB of "
        f"state {whole / 1e6:,.3f} MB are on every device (scales, counters, what no mesh axis cuts)"
    )


def note(mesh: Mesh, config: ModelConfig) -> str:
    """What the platform makes of this mesh that one would not expect; "" mostly."""
    if mesh.devices.flat[0].platform != "tpu":
        return ""
    return slice_note(config.d_model, mesh.shape["fsdp"] * mesh.shape["expert"])
