"""Bytes that a training configuration needs on one device, from the trees that training itself would make.

Parameters, their quantised form, adapters and optimiser state are abstract versions of the real ones; what a
step adds while it runs is estimated. Nothing here reads the presets' own arithmetic.

What the devices of `fsdp` share is what the table of rules says; the rest (norms, halves of adapters) is whole
on every device. Assumed: one layer is gathered while it runs, the next one while it does. The token table is
gathered for the loss, its gradient is whole before it is split.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from configs.schema import AnyConfig, DPOConfig
from gemma4_jax.config import SLIDING, ModelConfig
from gemma4_jax.model import adapters
from gemma4_jax.model.transformer import abstract_params, logical_axes
from gemma4_jax.model.weights import quantize
from gemma4_jax.sharding import RULES
from train.lora import hyperparameters
from train.optim import make_optimizer


def bytes_by_part(config: AnyConfig, model: ModelConfig, devices: int) -> dict[str, int]:
    """What one device needs in a step, by part.

    weights, optimizer: always there. gradients, activations, layer, loss: while a gradient is taken.
    update: in the place of these, while parameters are updated.
    """
    mesh = config.mesh.sizes(devices)
    split = mesh["fsdp"]
    compute, held = (
        jnp.dtype(d).itemsize for d in (config.model.compute_dtype, config.model.param_dtype)
    )
    params, axes = abstract_params(model, config.model.param_dtype), logical_axes(model)
    form = config.lora.base_quantization
    base = params
    if form != "none":
        matrices = {matrix.path: matrix for matrix in adapters.matrices(model)}
        base = jax.tree_util.tree_map_with_path(
            lambda path, leaf: _packed(leaf, matrices.get(tuple(k.key for k in path)), form), params
        )
    weights = _shared(base, axes, split)
    trained, trained_axes = params, axes
    if config.lora.rank:
        lora = hyperparameters(config.lora)
        trained, trained_axes = (
            adapters.abstract_adapters(model, lora),
            adapters.adapter_axes(model, lora),
        )
        weights += _shared(trained, trained_axes, split)
    state = jax.eval_shape(make_optimizer(config.optim, 100).init, trained)
    total = gradient = _shared(_as(trained, jnp.float32), trained_axes, split)
    if config.batch.accumulation > 1:  # beside the sum so far, that of the micro-batch
        gradient += _shared(trained, trained_axes, split)

    pairs = isinstance(config, DPOConfig)
    rows = config.batch.rows // config.batch.accumulation // (mesh["data"] * split)
    rows *= 2 if pairs else 1
    tokens = rows * config.data.max_length
    full = not config.lora.rank
    return {
        "weights": weights,
        "optimizer": _optimizer(state, trained, trained_axes, split),
        "gradients": gradient,
        "activations": _kept(model, tokens) * compute,
        "layer": _attention(model, rows, config.data.max_length)
        + _layer(model, tokens, compute)
        + _layer_weights(model, held, compute, form != "none", full, split),
        "loss": _loss(model, held, compute, full, split),
        "update": total + _update(trained, trained_axes, split, config.optim.stochastic_rounding),
    }


def peak(parts: dict[str, int]) -> int:
    """The largest sum of what is there at one time."""
    gradient = sum(parts[name] for name in ("gradients", "activations", "layer", "loss"))
    return parts["weights"] + parts["optimizer"] + max(gradient, parts["update"])


def _update(trained: Any, axes: Any, split: int, rounded: bool) -> int:
    """The largest array's new value in float32 before it is rounded, and random bits to round it with."""
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    largest = max(
        leaf.size // (split if _is_split(leaf.shape, name, split) else 1)
        for leaf, name in zip(jax.tree.leaves(trained), names, strict=True)
    )
    return largest * (8 if rounded else 4)


def _packed(leaf: Any, matrix: Any, form: Any) -> Any:
    if matrix is None:
        return leaf
    return jax.eval_shape(lambda x: quantize(x, form, lead=matrix.lead, inputs=matrix.inputs), leaf)


def _as(tree: Any, dtype: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), tree)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _is_split(shape: tuple[int, ...], names: tuple[str | None, ...], split: int) -> bool:
    cut = [size for name, size in zip(names, shape, strict=True) if name and "fsdp" in RULES[name]]
    assert all(size % split == 0 for size in cut), (shape, names, split)
    return bool(cut)


def _shared(tree: Any, axes: Any, split: int) -> int:
    """Bytes of one device; axes: of the plain arrays, those of a packed one are its own in order."""
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    leaves = jax.tree.leaves(tree, is_leaf=lambda x: hasattr(x, "codes"))
    total = 0
    for leaf, name in zip(leaves, names, strict=True):
        parts = split if _is_split(leaf.shape, name, split) else 1
        total += -(-_bytes(leaf) // parts)
    return total


def _optimizer(state: Any, trained: Any, axes: Any, split: int) -> int:
    """Moments of a parameter's shape are split as it is, factored ones are whole everywhere."""
    names = jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple))
    splits = {
        leaf.shape
        for leaf, name in zip(jax.tree.leaves(trained), names, strict=True)
        if _is_split(leaf.shape, name, split)
    }
    return sum(
        -(-_bytes(leaf) // (split if leaf.shape in splits else 1))
        for leaf in jax.tree.leaves(state)
    )


def _kept(model: ModelConfig, tokens: int) -> int:
    """Numbers that wait for the backward pass: the input of every layer, and the per-layer inputs with
    their gradients."""
    per_layer = 3 * model.per_layer_input_width
    return tokens * model.num_layers * (model.d_model + per_layer)


def _attention(model: ModelConfig, rows: int, length: int) -> int:
    """Scores of one layer, or of one chunk of queries, four times in float32: with their gradients."""
    most = 0
    for layer in model.layers:
        window = model.window if layer.kind == SLIDING else None
        if window and length > 2 * window:
            scores = length * 2 * window
        elif length <= 1024:
            scores = length * length
        else:
            scores = 512 * length
        most = max(most, scores * model.num_heads)
    return 4 * 4 * rows * most


def _layer(model: ModelConfig, tokens: int, compute: int) -> int:
    """What one layer computes, forward and backward; half of it is float32 whatever products are in.

    The numbers of rows are such that the sum grows with tokens as XLA's own count for a step does (CPU,
    float32, dense and mixture of experts).
    """
    heads = model.num_heads * max(layer.head_dim for layer in model.layers)
    width = max(layer.d_ff for layer in model.layers)
    numbers = tokens * (10 * model.d_model + 8 * heads + 8 * width)
    if model.moe is not None:
        active = tokens * model.moe.num_experts_per_token
        numbers += active * (12 * model.d_model + 8 * model.moe.d_ff)
    return numbers * (4 + compute) // 2


def _layer_weights(
    model: ModelConfig, held: int, compute: int, packed: bool, full: bool, split: int
) -> int:
    """Of the largest layer: gathered twice, converted, unpacked, and its gradient before it is split."""
    largest = max(_layer_sizes(model))
    need = 0
    if packed:
        need += largest * (4 + compute)
    else:
        need += 2 * largest * held if split > 1 else 0
        need += largest * compute if held != compute else 0
    return need + (4 * largest if full else 0)


def _layer_sizes(model: ModelConfig) -> list[int]:
    """Numbers of the matrices of a layer, by slot of the parameter tree."""
    sizes: dict[tuple[str, ...], int] = {}
    for matrix in adapters.matrices(model):
        if matrix.layers:
            slot = matrix.path[:2]
            sizes[slot] = sizes.get(slot, 0) + math.prod(matrix.shape[matrix.layers :])
    return list(sizes.values())


def _loss(model: ModelConfig, held: int, compute: int, full: bool, split: int) -> int:
    """A chunk of 512 rows of logits three times in float32, the token table in the type of products where it
    is not held in it or is split, and its gradient in float32 where it is trained."""
    table = model.vocab_size * model.d_model
    chunk = 3 * 512 * model.vocab_size * 4
    copy = table * compute if held != compute or split > 1 else 0
    return chunk + copy + (4 * table if full else 0)
