"""A drafter out of its Hugging Face folder (spec 10.2). Small: read whole, a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from gemma4_jax.build import Model
from gemma4_jax.checkpoint.description import CONFIG
from gemma4_jax.checkpoint.host import all_finite
from gemma4_jax.checkpoint.huggingface import Part, TextTensor, layer_tensors
from gemma4_jax.checkpoint.safetensors import DTYPES, StoredTensor, read_folder, read_json
from gemma4_jax.config import DrafterConfig
from gemma4_jax.errors import UserError
from gemma4_jax.hf_drafter import drafter_from_hf
from gemma4_jax.model.drafter import Drafter, DraftModel, abstract_params

_ORDERING = "masked_embedding.token_ordering"


def load_drafter(path: str | Path, model: Model) -> DraftModel:
    """The drafter in a Hugging Face folder, for `model`, in its dtype.

    Raises UserError, in one line, if the folder holds something else, is damaged, or drafts for another model.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG} here; give the folder of a drafter")
    try:
        config = drafter_from_hf(read_json(folder / CONFIG))
        config.check_fits(model.config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    module = Drafter(config, model.module.dtype, model.module.parts)
    return DraftModel(module, _read(folder, config, model.module.dtype))


def drafter_tensors(config: DrafterConfig) -> Iterator[TextTensor]:
    """Every tensor of a drafter's folder but `token_ordering`, which is no float."""
    stack, outer = config.stack, config.target_width
    inner = stack.d_model

    def tensor(name: str, shape: tuple[int, ...], path: str, transposed: bool) -> TextTensor:
        return TextTensor(name, shape, (Part(tuple(path.split("/")), transposed=transposed),))

    yield tensor("pre_projection.weight", (inner, 2 * outer), "pre_projection", True)
    yield tensor("post_projection.weight", (outer, inner), "post_projection", True)
    yield tensor("model.embed_tokens.weight", (stack.vocab_size, inner), "embed/table", False)
    yield tensor("model.norm.weight", (inner,), "final_norm/scale", False)
    if config.centroids is not None:
        shape = (config.centroids.count, inner)
        yield tensor("masked_embedding.centroids.weight", shape, "centroids", False)
    for layer in config.layers:
        for stored in layer_tensors(stack, layer):
            (part,) = stored.parts
            # A target's layers are stacked, a drafter's stand alone.
            path = "/".join((f"layer_{layer.index}", *part.path[2:]))
            yield tensor(f"model.{stored.name}", stored.shape, path, part.transposed)


def _read(folder: Path, config: DrafterConfig, dtype: Any) -> dict[str, Any]:
    stored = read_folder(folder)
    wanted = {tensor.name: tensor for tensor in drafter_tensors(config)}
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    if config.centroids is not None:
        shapes[_ORDERING] = (config.stack.vocab_size,)
    _check(folder, shapes, stored)
    params = abstract_params(config, dtype)
    for name, tensor in wanted.items():
        (part,) = tensor.parts
        values = _values(stored[name], DTYPES)
        if not all_finite(values):
            raise UserError(f"{stored[name].file}: {name} holds NaN or Inf; the file is broken")
        *above, last = part.path
        place = params
        for key in above:
            place = place[key]
        values = values.T if part.transposed else values
        place[last] = jnp.asarray(values.reshape(place[last].shape), dtype)
    if config.centroids is not None:
        integers: dict[str, np.dtype[Any]] = {"I64": np.dtype(np.int64), "I32": np.dtype(np.int32)}
        ids = _values(stored[_ORDERING], integers)
        if not np.array_equal(np.sort(ids), np.arange(len(ids))):
            raise UserError(f"{stored[_ORDERING].file}: {_ORDERING} does not name every id once")
        shape = params["token_ordering"].shape
        params["token_ordering"] = jnp.asarray(ids.reshape(shape), jnp.int32)
    return params


def _check(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredTensor]
) -> None:
    for name, shape in shapes.items():
        if name not in stored:
            raise UserError(f"{folder}: {name} {list(shape)} is missing, config.json implies it")
        if stored[name].shape != shape:
            raise UserError(
                f"{stored[name].file}: {name} has shape {list(stored[name].shape)}, config.json "
                f"implies {list(shape)}"
            )
    for name in stored:
        if name not in shapes and not name.endswith("lm_head.weight"):
            raise UserError(f"{folder}: {name} does not belong to this drafter")


def _values(source: StoredTensor, dtypes: Mapping[str, np.dtype[Any]]) -> np.ndarray:
    if source.dtype not in dtypes:
        raise UserError(
            f"{source.file}: {source.name} is stored as {source.dtype}; supported are {', '.join(dtypes)}"
        )
    count = source.nbytes // dtypes[source.dtype].itemsize
    values = np.fromfile(source.file, dtypes[source.dtype], count, offset=source.offset)
    return values.reshape(source.shape)
