"""Model folders of our own: our parameter tree as Orbax writes it, beside the description.

For what stays with us (`gemma4 convert`): no renaming, no transposing, and leaves that are restored
where they are sharded. Not here: checkpoints of a training run, which hold its whole state.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemma4_jax.build import Model
from gemma4_jax.checkpoint.description import CONFIG, refuse_taken_apart, write_description
from gemma4_jax.checkpoint.folders import replacing
from gemma4_jax.checkpoint.host import all_finite, host_block
from gemma4_jax.config import ModelConfig
from gemma4_jax.distributed import all_succeed
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import abstract_params

_PARAMS = "params"


def is_store(folder: Path) -> bool:
    """Whether `folder` is one that `save` wrote."""
    return (folder / CONFIG).is_file() and (folder / _PARAMS / "_METADATA").is_file()


def save(model: Model, path: str | Path, *, overwrite: bool = False) -> None:
    """Write `model` to a folder of ours; the parameters keep their dtypes.

    overwrite: replace any folder at `path`; otherwise an earlier store is replaced and anything
    else refused. Raises UserError if `path` is a file, holds something else, or cannot be written.
    """
    import orbax.checkpoint as ocp  # half a second, which loading a Hugging Face folder can spare

    refuse_taken_apart(model)
    dtype = np.dtype(model.params["embed"]["table"].dtype).name
    with replacing(Path(path), is_store, "model folder", overwrite) as folder:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / _PARAMS, model.params)
        write_description(folder, model, dtype)


def read_params(
    folder: Path, config: ModelConfig, dtype: Any, places: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The parameter tree in a folder of ours, all leaves of `dtype`.

    places: a sharding for every leaf, of which a process reads its own slices; None: the default device.
    Raises UserError if leaves are missing, have shapes the config does not imply, are not finite,
    or cannot be read.
    """
    import orbax.checkpoint as ocp

    where = folder.absolute() / _PARAMS
    shapes = abstract_params(config, dtype)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        jax.tree.map(lambda _: here, shapes) if places is None else places,
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            stored = checkpointer.metadata(where).item_metadata.tree
            _compare(folder, _shapes(stored), _shapes(wanted))
            params = checkpointer.restore(where, wanted)
    except (ValueError, OSError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        first_line = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{where} cannot be restored, it is damaged: {first_line}") from None
    alone = all(leaf.is_fully_addressable for leaf in jax.tree.leaves(params))
    with all_succeed(f"read its slices of {where}", alone):
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not all(map(all_finite, _own_blocks(leaf))):
                raise UserError(
                    f"{where}: {_name(path)} holds NaN or Inf; the checkpoint is broken"
                )
    return params


def _own_blocks(leaf: jax.Array) -> Iterator[np.ndarray]:
    """What this process's devices hold of a leaf, each number once, layer by layer or row by row."""
    slices = {str(shard.index): shard.data for shard in leaf.addressable_shards}
    for own in slices.values():
        yield from (host_block(own, slice(i, i + 1)) for i in range(own.shape[0]))


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {_name(p): tuple(leaf.shape) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _compare(
    folder: Path, stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> None:
    if missing := sorted(set(wanted) - set(stored)):
        raise UserError(
            f"{folder}: {len(missing)} parameters are missing: {', '.join(missing[:3])}"
        )
    if extra := sorted(set(stored) - set(wanted)):
        raise UserError(
            f"{folder}: {len(extra)} parameters do not belong to this model: {', '.join(extra[:3])}"
        )
    for name, shape in wanted.items():
        if stored[name] != shape:
            raise UserError(
                f"{folder}: {name} has shape {list(stored[name])}, {CONFIG} implies {list(shape)}"
            )
