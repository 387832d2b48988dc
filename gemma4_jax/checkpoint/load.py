"""From a folder to a model, whichever kind of folder it is."""

from pathlib import Path
from typing import Any

import jax

from gemma4_jax.build import Model, build, dtype_named
from gemma4_jax.checkpoint import reading, store
from gemma4_jax.checkpoint.description import describe
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError


def load(path: str | Path, dtype: Any = "float32", mesh: jax.sharding.Mesh | None = None) -> Model:
    """The model in a Hugging Face folder, or in one that `checkpoint.save` wrote.

    dtype: of the parameters and of the computation ("float32", "bfloat16", "float16"), whatever the
    files hold. mesh: parameters are placed on the default device; there is no other choice yet.

    Raises UserError, in one line, for whatever is wrong with the folder.
    """
    if mesh is not None:
        raise UserError("load cannot place parameters on a mesh; pass mesh=None")
    dtype = dtype_named(dtype)
    about = describe(path)
    params = load_params(path, about.config, dtype)
    return build(
        about.config, params, about.tokenizer, dtype=dtype, chat_template=about.chat_template
    )


def load_params(path: str | Path, config: ModelConfig, dtype: Any = "float32") -> dict[str, Any]:
    """The parameter tree of a model folder whose configuration (`describe`) is known already."""
    read = store.read_params if store.is_store(Path(path)) else reading.read_params
    return read(Path(path), config, dtype_named(dtype))
