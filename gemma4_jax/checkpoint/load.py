"""From a folder to a model, whichever kind of folder it is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from gemma4_jax.build import Model, build, dtype_named
from gemma4_jax.checkpoint import reading, store
from gemma4_jax.checkpoint.description import describe
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import abstract_params, logical_axes
from gemma4_jax.sharding import AXES, DECODING_RULES, RULES, Rules, shardings


def load(path: str | Path, dtype: Any = "float32", mesh: Mesh | None = None) -> Model:
    """The model in a Hugging Face folder, or in one that `checkpoint.save` wrote.

    dtype: of the parameters and of the computation ("float32", "bfloat16", "float16"), whatever the
    files hold. mesh: what cuts the parameters, by `sharding.DECODING_RULES`; `make_mesh` there makes one. Each
    process reads what its own devices hold. None: all of them on the default device.

    Raises UserError, in one line, for whatever is wrong with the folder.
    """
    dtype = dtype_named(dtype)
    about = describe(path)
    params = load_params(path, about.config, dtype, mesh=mesh, rules=DECODING_RULES)
    return build(
        about.config, params, about.tokenizer, dtype=dtype, chat_template=about.chat_template
    )


Finish = Callable[[tuple[str, ...], jax.Array], Any]  # (keys from the root, leaf) -> what is kept


def load_params(
    path: str | Path,
    config: ModelConfig,
    dtype: Any = "float32",
    finish: Finish | None = None,
    mesh: Mesh | None = None,
    rules: Rules = RULES,
) -> dict[str, Any]:
    """The parameter tree of a model folder whose configuration (`describe`) is known already.

    finish: what is kept of each leaf, such as its quantised form. From a Hugging Face folder it is
    applied as leaves are read, so that the whole tree is never held unfinished. mesh: see `load`; leaves are
    placed, by `rules`, when `finish` gets them.
    """
    folder, dtype = Path(path), dtype_named(dtype)
    places = None if mesh is None else _places(config, mesh, rules)
    if store.is_store(folder):
        params = store.read_params(folder, config, dtype, places)
        return params if finish is None else finish_leaves(params, finish)
    if finish is None:
        return reading.read_params(folder, config, dtype, places)
    return reading.read_params(folder, config, dtype, places, finish)


def _places(config: ModelConfig, mesh: Mesh, rules: Rules) -> dict[str, Any]:
    if mesh.axis_names != AXES:
        raise UserError(
            f"the mesh has the axes {', '.join(map(str, mesh.axis_names))}; parameters are cut over "
            f"{', '.join(AXES)}: make it with gemma4_jax.sharding.make_mesh"
        )
    places: dict[str, Any] = shardings(logical_axes(config), abstract_params(config), mesh, rules)
    return places


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
