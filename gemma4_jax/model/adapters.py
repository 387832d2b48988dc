"""LoRA on a model: which matrices, the adapters' tree, and the two joined into parameters that run.

Adapters are a plain nested dict that mirrors the parameter tree: where that has a matrix, this has
{"lora_a", "lora_b"} (and "magnitude" for DoRA), stacked over layers and experts as the matrix is. They are all
that is trained. Not here: the arithmetic (`weights.py`), files (`checkpoint/peft.py`).

Letters: I inputs, O outputs (each one axis or several), r rank.
"""

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array

from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.model.quantize_slices import quantize_slices
from gemma4_jax.model.transformer import abstract_params, logical_axes
from gemma4_jax.model.weights import Adapted, Quantization, Quantized, column_norms, quantize

Tree = dict[str, Any]

_MLP = ("gate_proj", "up_proj", "down_proj")
# What can be adapted: target -> module -> matrices. Everything else (tables, norms, scales, and the
# router, whose change would move every token) is not.
_TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "attention": {"attention": ("q_proj", "k_proj", "v_proj", "o_proj")},
    "mlp": {"mlp": _MLP},
    "experts": {"moe": _MLP},
    "per_layer_input": {
        "per_layer_input": ("gate_proj", "out_proj"),
        "per_layer_embed": ("projection",),
    },
}
TARGETS = tuple(_TARGETS)
# (module, matrix) -> target.
_TARGET_OF = {
    (module, name): target
    for target, modules in _TARGETS.items()
    for module, names in modules.items()
    for name in names
}


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Hyperparameters of adapters, in the field's words.

    rank: r. alpha: the delta is alpha / r * A B, with rslora alpha / sqrt(r) (arXiv 2312.03732). targets: some
    of TARGETS; those that a model lacks are passed over. dropout: share of A's inputs set to 0 in training.
    dora: learn the length of every column apart from its direction.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ("attention", "mlp", "experts")
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    def __post_init__(self) -> None:
        for target in self.targets:
            if target not in TARGETS:
                raise unknown("LoRA target", target, TARGETS)

    @property
    def scale(self) -> float:
        """Factor of A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Matrix:
    """A matrix that can be adapted or quantised, or a stack of them.

    path: keys in the parameter tree. shape: [..., I, O]. layers: leading axes that scans slice. lead: all
    leading axes, experts' among them. inputs: number of axes of I.
    """

    path: tuple[str, ...]
    target: str
    shape: tuple[int, ...]
    layers: int
    lead: int
    inputs: int

    def adapter_shapes(self, lora: LoRA) -> dict[str, tuple[int, ...]]:
        """Of the adapter's arrays, by name."""
        stack, outputs = self.shape[: self.lead], self.shape[self.lead + self.inputs :]
        shapes = {
            "lora_a": (*self.shape[: self.lead + self.inputs], lora.rank),
            "lora_b": (*stack, lora.rank, *outputs),
        }
        return shapes | ({"magnitude": (*stack, *outputs)} if lora.dora else {})


def matrix_at(path: tuple[str, ...], shape: tuple[int, ...]) -> Matrix | None:
    """The parameter there, if it is a matrix of a target."""
    module, name = path[-2:] if len(path) > 1 else ("", *path)
    target = _TARGET_OF.get((module, name))
    if target is None:
        return None
    layers = 2 if path[0].startswith("segment_") else 0
    lead = layers + (target == "experts")
    return Matrix(path, target, shape, layers, lead, inputs=2 if path[-1] == "o_proj" else 1)


@functools.cache
def matrices(config: ModelConfig) -> tuple[Matrix, ...]:
    """Every matrix of a model that belongs to a target, in the order of the parameter tree."""
    found = (matrix_at(path, leaf.shape) for path, leaf in _leaves(abstract_params(config)))
    return tuple(matrix for matrix in found if matrix is not None)


def adapted_matrices(config: ModelConfig, lora: LoRA) -> tuple[Matrix, ...]:
    """Those that `lora` adapts. UserError if there are none, or if DoRA is asked of experts."""
    chosen = tuple(m for m in matrices(config) if m.target in lora.targets)
    if not chosen:
        has = sorted({m.target for m in matrices(config)})
        raise UserError(
            f"{config.name} has nothing to adapt for lora.targets {', '.join(lora.targets)}; "
            f"it has {', '.join(has)}"
        )
    if lora.dora and any(m.target == "experts" for m in chosen):
        raise UserError(
            "lora.dora is on and lora.targets has 'experts', which no PEFT adapter can hold; "
            "turn one of the two off"
        )
    return chosen


def abstract_adapters(config: ModelConfig, lora: LoRA) -> Tree:
    """Shapes of the adapters, as `abstract_params` gives those of parameters; float32."""
    tree: Tree = {}
    for matrix in adapted_matrices(config, lora):
        shapes = matrix.adapter_shapes(lora)
        structs = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in shapes.items()}
        _insert(tree, matrix.path, structs)
    return tree


def adapter_axes(config: ModelConfig, lora: LoRA) -> Tree:
    """Logical axis names of the adapters: their matrix's own, and None for the rank."""
    names, tree = logical_axes(config), Tree()
    for matrix in adapted_matrices(config, lora):
        axes = _at(names, matrix.path)
        stack, cut = axes[: matrix.lead], matrix.lead + matrix.inputs
        mine = {"lora_a": (*axes[:cut], None), "lora_b": (*stack, None, *axes[cut:])}
        if lora.dora:
            mine["magnitude"] = (*stack, *axes[cut:])
        _insert(tree, matrix.path, mine)
    return tree


def init_adapters(config: ModelConfig, lora: LoRA, seed: int, params: Mapping[str, Any]) -> Tree:
    """Adapters that change nothing yet: A uniform in +-1 / sqrt(I), as PEFT draws it, and B zero.

    params: the base, whose columns' lengths DoRA starts from; read for DoRA alone. Drawn by numpy: the
    same on every platform.
    """
    tree: Tree = {}
    for number, matrix in enumerate(adapted_matrices(config, lora)):
        shapes = matrix.adapter_shapes(lora)
        stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number,)))
        bound = 1 / math.sqrt(math.prod(shapes["lora_a"][matrix.lead : -1]))
        a = jnp.asarray(stream.uniform(-bound, bound, shapes["lora_a"]), jnp.float32)
        b = jnp.zeros(shapes["lora_b"], jnp.float32)
        adapter = {"lora_a": a, "lora_b": b}
        if lora.dora:
            norms = column_norms(Adapted(_at(params, matrix.path), a, b))
            adapter["magnitude"] = norms.reshape(shapes["magnitude"])
        _insert(tree, matrix.path, adapter)
    return tree


def attach(
    params: Mapping[str, Any], adapters: Mapping[str, Any], lora: LoRA, key: Array | None = None
) -> Tree:
    """The parameters with an `Adapted` wherever there is an adapter; arrays are shared, not copied.

    key: of dropout; without one, or at a rate of 0, nothing is dropped.
    """
    dropping = key if lora.dropout else None
    numbers = iter(range(1 << 31))

    def join(base: Any, adapter: Any, layers: int) -> Any:
        if "lora_a" not in adapter:
            return {
                name: join(value, adapter[name], layers or 2 * name.startswith("segment_"))
                if name in adapter
                else value
                for name, value in base.items()
            }
        keys = None
        if dropping is not None:
            mine, stack = jax.random.fold_in(dropping, next(numbers)), base.shape[:layers]
            keys = jax.random.key_data(jax.random.split(mine, stack))
        return Adapted(base, **adapter, key=keys, scale=lora.scale, dropout=lora.dropout)

    joined: Tree = join(params, adapters, 0)
    return joined


class Quantizer:
    """(path, leaf) -> the leaf, quantised where it is a matrix; what `checkpoint.load_params` can apply
    leaf by leaf, so that the whole model is never held unquantised."""

    def __init__(self, config: ModelConfig, form: Quantization):
        """Embedding tables, norms, scales and the router stay as they are."""
        self._matrices = {matrix.path: matrix for matrix in matrices(config)}
        self._form = form

    def __call__(self, path: tuple[str, ...], leaf: Array) -> Array | Quantized:
        """Waits for the result: the leaf's own memory can go before the next one comes. A leaf that lies on a
        mesh is quantised there, slice by slice."""
        matrix = self._matrices.get(path)
        if matrix is None:
            return leaf
        placed = isinstance(leaf.sharding, NamedSharding) and leaf.sharding.mesh.size > 1
        rounded = quantize_slices if placed else quantize
        return jax.block_until_ready(
            rounded(leaf, self._form, lead=matrix.lead, inputs=matrix.inputs)
        )


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[Any, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


def _at(tree: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _insert(tree: Tree, path: tuple[str, ...], value: Any) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value
