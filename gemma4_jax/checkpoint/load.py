"""From a folder to a model, whichever kind of folder it is."""

from collections.abc import Callable
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


Finish = Callable[[tuple[str, ...], jax.Array], Any]  # (keys from the root, leaf) -> what is kept


def load_params(
    path: str | Path, config: ModelConfig, dtype: Any = "float32", finish: Finish | None = None
) -> dict[str, Any]:
    """The parameter tree of a model folder whose configuration (`describe`) is known already.

    finish: what is kept of each leaf, such as its quantised form. From a Hugging Face folder it is
    applied as leaves are read, so that the whole tree is never held unfinished.
    """
    folder, dtype = Path(path), dtype_named(dtype)
    if store.is_store(folder):
        params = store.read_params(folder, config, dtype)
        return params if finish is None else finish_leaves(params, finish)
    if finish is None:
        return reading.read_params(folder, config, dtype)
    return reading.read_params(folder, config, dtype, finish=finish)


def finish_leaves(
    params: dict[str, Any], finish: Finish, path: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Apply `finish` to every leaf, in place and one by one: each leaf goes as its successor comes."""
    for key in params:
        if isinstance(params[key], dict):
            finish_leaves(params[key], finish, (*path, key))
        else:
            params[key] = finish((*path, key), params[key])
    return params
