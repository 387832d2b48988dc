"""Checkpoints inside the folder of a training run, as models: what `train` saved, read without `train`.

A checkpoint holds the whole state of training; of that the parameters are read, or their moving average where
there is one (that is what the run exports). Adapters are not models: of such a run there is the merged export.
"""

import json
import logging
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from gemma4_jax.build import Model, build, dtype_named
from gemma4_jax.checkpoint.description import describe
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import abstract_params, logical_axes
from gemma4_jax.sharding import DECODING_RULES, shardings


def is_training_run(folder: Path) -> bool:
    """Whether `train` made the folder."""
    return (folder / "checkpoints").is_dir() and "task" in _config(folder)


def steps(run: Path) -> list[int]:
    """Numbers of the checkpoints of a run, in order; none of a run of adapters."""
    if _config(run)["config"]["lora"]["rank"]:
        return []
    entries = (run / "checkpoints").iterdir()
    return sorted(int(entry.name) for entry in entries if entry.name.isdigit())


def state_folder(run: Path, step: int) -> Path:
    """Where the arrays of a checkpoint are."""
    return run / "checkpoints" / str(step) / "state"


def description_folder(run: Path) -> Path:
    """A folder that says what the model of a run is, beside weights that need not be those meant."""
    export = run / "huggingface"
    if (export / "config.json").is_file():
        return export
    started_from = _config(run)["config"]["model"]["path"]
    if started_from and Path(started_from).is_dir():
        return Path(started_from)
    raise UserError(
        f"{run} does not say what its model is before it exports one (run.export_huggingface), and what it "
        f"started from ({started_from or 'random weights'}) is no folder here"
    )


def load_step(run: Path, step: int, dtype: str, mesh: Mesh | None) -> Model:
    """The model of a checkpoint, in `dtype`; its parameters over `mesh` as for decoding. UserError if it
    cannot be read."""
    import jax
    import orbax.checkpoint as ocp

    about = describe(description_folder(run))
    kind = dtype_named(dtype)
    like = abstract_params(about.config, kind)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = (
        jax.tree.map(lambda _: here, like)
        if mesh is None
        else shardings(logical_axes(about.config), like, mesh, DECODING_RULES)
    )
    wanted = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        like,
        places,
    )
    where = state_folder(run, step).absolute()
    # It misses a file beside the arrays that only CheckpointManager looks for, elsewhere.
    logging.getLogger("absl").addFilter(_without_metadata)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            tree = checkpointer.metadata(where).item_metadata.tree
            name = "average" if tree.get("average") else "params"
            item = {name: wanted}
            arguments = ocp.checkpoint_utils.construct_restore_args(item)
            restored = checkpointer.restore(
                where,
                args=ocp.args.PyTreeRestore(
                    item=item, restore_args=arguments, partial_restore=True
                ),
            )
    except (ValueError, OSError, KeyError, AttributeError) as error:
        first_line = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{where} cannot be read: {first_line}") from None
    return build(about.config, restored[name], about.tokenizer, dtype=kind)


def _without_metadata(record: logging.LogRecord) -> bool:
    return "_CHECKPOINT_METADATA" not in record.getMessage()


def _config(run: Path) -> dict[str, Any]:
    """What a run's config.json says; {} for other folders."""
    try:
        found = json.loads((run / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
