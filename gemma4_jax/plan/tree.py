"""The arrays of a model and of its adapters: names, shapes, logical axes; and what a mesh cuts them into.

The same tree as `model.transformer.abstract_params` and `logical_axes`, made from the configuration without
tracing the model, which would start a device (tests compare them leaf by leaf). How arrays are cut is
`sharding.spec`'s to say. Not here: what else a step needs (`memory.py`).
"""

import functools
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from jax.sharding import AbstractMesh

from gemma4_jax.config import LayerConfig, ModelConfig
from gemma4_jax.model.adapters import LoRA, Matrix, matrix_at
from gemma4_jax.model.layout import segments
from gemma4_jax.model.weights import NF4_BLOCK
from gemma4_jax.sharding import AXES, DECODING_RULES, RULES, spec

Axes = tuple[str | None, ...]


@dataclass(frozen=True)
class Leaf:
    """An array of the tree. layers: how many layers of the model it holds a slice of; 0: it is of none."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: Axes
    layers: int = 0

    @property
    def size(self) -> int:
        """Numbers."""
        return math.prod(self.shape)


@functools.cache
def parameters(config: ModelConfig) -> tuple[Leaf, ...]:
    """Every parameter, in the order of the tree."""
    d, layers, width = config.d_model, config.num_layers, config.per_layer_input_width
    found = [
        Leaf(("embed", "table"), (config.vocab_size, d), ("vocab", "embed")),
        Leaf(("final_norm", "scale"), (d,), ("norm",)),
    ]
    if width:
        rows, per_layer = config.per_layer_vocab_size, (None, "per_layer_input")
        found += [
            Leaf(("per_layer_embed", "norm", "scale"), (width,), ("per_layer_input",)),
            Leaf(("per_layer_embed", "projection"), (d, layers, width), ("embed", *per_layer)),
            Leaf(
                ("per_layer_embed", "table"),
                (rows, layers * width),
                ("per_layer_vocab", None),
            ),
        ]
    for number, segment in enumerate(segments(config)):
        for slot, run in enumerate(segment.pattern):
            place, stack = (f"segment_{number}", f"slot_{slot}"), (segment.repeats, run.length)
            found += [
                Leaf((*place, *path), (*stack, *shape), ("layers", "run", *axes), math.prod(stack))
                for path, shape, axes in _layer(config, run.layer)
            ]
    return tuple(sorted(found, key=lambda leaf: leaf.path))


@functools.cache
def matrices(config: ModelConfig) -> tuple[Matrix, ...]:
    """`adapters.matrices` without tracing the model."""
    found = (matrix_at(leaf.path, leaf.shape) for leaf in parameters(config))
    return tuple(matrix for matrix in found if matrix is not None)


@functools.cache
def adapters(config: ModelConfig, lora: LoRA) -> tuple[Leaf, ...]:
    """Every array of the adapters."""
    of = {leaf.path: leaf for leaf in parameters(config)}
    found = []
    for matrix in matrices(config):
        if matrix.target not in lora.targets:
            continue
        leaf, cut = of[matrix.path], matrix.lead + matrix.inputs
        names: dict[str, Axes] = {
            "lora_a": (*leaf.axes[:cut], None),
            "lora_b": (*leaf.axes[: matrix.lead], None, *leaf.axes[cut:]),
            "magnitude": (*leaf.axes[: matrix.lead], *leaf.axes[cut:]),
        }
        for name, shape in matrix.adapter_shapes(lora).items():
            found.append(Leaf((*matrix.path, name), shape, names[name], leaf.layers))
    return tuple(found)


@functools.cache
def packed(config: ModelConfig, form: str) -> tuple[tuple[Leaf, int | None], ...]:
    """Parameters whose matrices are quantised: (array, bytes of a number; None where it is as held).

    Two numbers of nf4 are one of its array.
    """
    of = {matrix.path: matrix for matrix in matrices(config)}
    found: list[tuple[Leaf, int | None]] = []
    for leaf in parameters(config):
        matrix = of.get(leaf.path)
        if matrix is None:
            found.append((leaf, None))
            continue
        shape, inputs = leaf.shape, range(matrix.lead, matrix.lead + matrix.inputs)
        if form == "int8":
            codes = shape
            scales = tuple(1 if axis in inputs else size for axis, size in enumerate(shape))
        else:
            codes = (*shape[:-1], shape[-1] // 2)
            scales = (*shape[:-1], shape[-1] // math.gcd(NF4_BLOCK, shape[-1]))
        found.append((Leaf((*leaf.path, "codes"), codes, leaf.axes, leaf.layers), 1))
        found.append((Leaf((*leaf.path, "scales"), scales, leaf.axes, leaf.layers), 4))
    return tuple(found)


@functools.cache
def kinds(config: ModelConfig) -> tuple[tuple[LayerConfig, int], ...]:
    """The different layers, and how many there are of each."""
    counts = Counter(layer.signature for layer in config.layers)
    first = {layer.signature: layer for layer in reversed(config.layers)}
    return tuple((first[signature], count) for signature, count in counts.items())


@functools.cache
def abstract_mesh(sizes: tuple[int, ...]) -> AbstractMesh:
    """A mesh of no devices, by the sizes of AXES in their order."""
    return AbstractMesh(sizes, AXES)


@functools.lru_cache(maxsize=1 << 16)
def cuts(
    shape: tuple[int, ...], axes: Axes, sizes: tuple[int, ...], decoding: bool = False
) -> Mapping[str, int]:
    """Mesh axis -> the axis of the array that it cuts. UserError where something does not divide."""
    found: dict[str, int] = {}
    rules = DECODING_RULES if decoding else RULES
    for place, part in enumerate(spec(axes, shape, abstract_mesh(sizes), rules)):
        for name in (part,) if isinstance(part, str) else part or ():
            found[name] = place
    return found


def parts(leaf: Leaf, sizes: tuple[int, ...], decoding: bool = False) -> int:
    """In how many different parts a mesh cuts an array."""
    found = cuts(leaf.shape, leaf.axes, sizes, decoding)
    return math.prod(sizes[AXES.index(name)] for name in found)


def _layer(
    config: ModelConfig, layer: LayerConfig
) -> list[tuple[tuple[str, ...], tuple[int, ...], Axes]]:
    """(path, shape, axes) of one layer's arrays."""
    d, width, moe = config.d_model, config.per_layer_input_width, config.moe
    heads, kv, size = config.num_heads, layer.num_kv_heads, layer.head_dim
    found: list[tuple[tuple[str, ...], tuple[int, ...], Axes]] = [
        (("attention", "q_proj"), (d, heads, size), ("embed", "heads", "head_dim")),
        (("attention", "o_proj"), (heads, size, d), ("heads", "head_dim", "embed")),
        (("attention", "q_norm", "scale"), (size,), ("head_dim",)),
        (("mlp", "gate_proj"), (d, layer.d_ff), ("embed", "mlp")),
        (("mlp", "up_proj"), (d, layer.d_ff), ("embed", "mlp")),
        (("mlp", "down_proj"), (layer.d_ff, d), ("mlp", "embed")),
        (("layer_scalar",), (), ()),
    ]
    if layer.owns_kv:
        names = ("k_proj",) if layer.value_from_key else ("k_proj", "v_proj")
        axes: Axes = ("embed", "kv_heads", "head_dim")
        found += [(("attention", name), (d, kv, size), axes) for name in names]
        found.append((("attention", "k_norm", "scale"), (size,), ("head_dim",)))
    norms = ["pre_attention_norm", "post_attention_norm", "pre_ffw_norm", "post_ffw_norm"]
    if moe is not None:
        norms += ["pre_moe_norm", "post_mlp_norm", "post_moe_norm"]
        count, wide, narrow = moe.num_experts, (d, moe.d_ff), (moe.d_ff, d)
        inwards: Axes = ("experts", "embed", "expert_mlp")
        found += [
            (("moe", "router_proj"), (d, count), ("embed", "experts")),
            (("moe", "router_scale"), (d,), ("norm",)),
            (("moe", "expert_scale"), (count,), ("experts",)),
            (("moe", "gate_proj"), (count, *wide), inwards),
            (("moe", "up_proj"), (count, *wide), inwards),
            (("moe", "down_proj"), (count, *narrow), ("experts", "expert_mlp", "embed")),
        ]
    if width:
        found += [
            (("per_layer_input", "gate_proj"), (d, width), ("embed", "per_layer_input")),
            (("per_layer_input", "out_proj"), (width, d), ("per_layer_input", "embed")),
            (("per_layer_input", "norm", "scale"), (d,), ("norm",)),
        ]
    found += [((name, "scale"), (d,), ("norm",)) for name in norms]
    return found
