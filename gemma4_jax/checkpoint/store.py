"""Model folders of our own: our parameter tree as Orbax writes it, beside the description.

For what stays with us (`gemma4 convert`): no renaming, no transposing, and leaves that are restored
where they are sharded. Not here: checkpoints of a training run, which hold its whole state.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemma4_jax.build import Model
from gemma4_jax.checkpoint.description import CONFIG, write_description
from gemma4_jax.checkpoint.folders import replacing
from gemma4_jax.checkpoint.host import all_finite, host_block
from gemma4_jax.config import ModelConfig
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

    dtype = np.dtype(model.params["embed"]["table"].dtype).name
    with replacing(Path(path), is_store, "model folder", overwrite) as folder:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(folder / _PARAMS, model.params)
        write_description(folder, model, dtype)


def read_params(folder: Path, config: ModelConfig, dtype: Any) -> dict[str, Any]:
    """The parameter tree in a folder of ours, all leaves of `dtype`, on the default device.

    Raises UserError if leaves are missing, have shapes the config does not imply, are not finite,
    or cannot be read.
    """
    import orbax.checkpoint as ocp

    where = folder.absolute() / _PARAMS
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        abstract_params(config, dtype),
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
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        blocks = (host_block(leaf, slice(i, i + 1)) for i in range(leaf.shape[0]))
        if not all(map(all_finite, blocks)):
            raise UserError(f"{where}: {_name(path)} holds NaN or Inf; the checkpoint is broken")
    return params


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
