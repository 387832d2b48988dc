"""The small parts every layer is made of: parameters with logical axes, RMS norm, MLP, embedding tables.

Letters: B batch, T tokens, D d_model, F feed-forward, V vocabulary, L layers, P per-layer-input width.
Logical axis names are declared where a parameter is created; `sharding.py` says what they mean on a mesh.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int

from gemma4_jax.collectives import look_up
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.weights import Adapted, Apart, Quantized, Stacked, project
from gemma4_jax.sharding import Rules


@dataclasses.dataclass(frozen=True)
class Initializer:
    """How a parameter starts: `mean` plus Gaussian noise of `stddev`, whatever its shape."""

    mean: float = 0.0
    stddev: float = 0.0

    def __call__(self, key: Array, shape: Sequence[int]) -> Array:
        """Draw in float32."""
        start = jnp.full(shape, self.mean, jnp.float32)
        return start + self.stddev * jax.random.normal(key, shape) if self.stddev else start


def constant(value: float) -> Initializer:
    """Every number the same."""
    return Initializer(mean=value)


def fan_in(size: int) -> Initializer:
    """Gaussian of variance 1 / size: keeps unit variance through a contraction over `size`."""
    return Initializer(stddev=1 / math.sqrt(size))


class Declared(nn.LogicallyPartitioned):
    """A parameter with what was declared about it: logical axis names and initialiser."""

    initializer: Initializer = struct.field(default=Initializer(), pytree_node=False)


def is_declared(leaf: Any) -> bool:
    """Whether this stands for a parameter, in a tree of shapes."""
    return isinstance(leaf, Declared)


def drawn(declared: Any, key: Array, dtype: Any) -> dict[str, Any]:
    """Parameters for a tree of `Declared` shapes, each drawn from its own stream of the key.

    Drawn by numpy, leaf by leaf: the same on every platform, and at once. (XLA needs about a second to compile
    a Gaussian of one shape; a tiny model has twenty shapes.)
    """
    entropy = [int(word) for word in np.asarray(jax.random.key_data(key)).ravel()]

    def draw(number: int, leaf: Declared) -> Array:
        start, shape = leaf.initializer, leaf.value.shape
        values = np.full(shape, start.mean, np.float32)
        if start.stddev:
            stream = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(number,)))
            values += start.stddev * stream.standard_normal(shape, np.float32)
        return jnp.asarray(values, dtype)

    leaves, tree = jax.tree.flatten(declared, is_leaf=is_declared)
    params: dict[str, Any] = jax.tree.unflatten(
        tree, [draw(number, leaf) for number, leaf in enumerate(leaves)]
    )
    return params


def param(
    module: nn.Module,
    name: str,
    shape: Sequence[int],
    axes: Sequence[str | None],
    init: Initializer,
) -> Any:
    """Declare a float32 parameter of `module` with one logical axis name per dimension.

    Returns the array, or whatever else of `weights.py` was given in its place.
    """

    def declare(key: Array) -> Declared:
        return Declared(init(key, shape), names=tuple(axes), initializer=init)

    # Flax compares shapes leaf by leaf: what stands for a matrix is read past it.
    given: Any = module.get_variable("params", name)
    if isinstance(given, Quantized | Adapted | Stacked | Apart):
        return given
    return module.param(name, declare)


def rms_normalize(x: Float[Array, "*batch D"], eps: float) -> Float[Array, "*batch D"]:
    """x / sqrt(mean(x^2) + eps) over the last axis, in float32; the result is float32 (spec 1)."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU in its tanh form, the one activation Gemma 4 uses."""
    return jax.nn.gelu(x, approximate=True)


@jax.custom_vjp
def gated_gelu(gate: Float[Array, "*shape"], up: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """gelu(gate) * up. The backward pass keeps the two operands alone, not the tanh's many factors."""
    return gelu(gate) * up


def _gated_gelu_forward(gate: Array, up: Array) -> tuple[Array, tuple[Array, Array]]:
    return gated_gelu(gate, up), (gate, up)


def _gated_gelu_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    gate, up = saved
    x, g = gate.astype(jnp.float32), grad.astype(jnp.float32)
    square = jnp.square(x)
    bend, outer = 0.044715, math.sqrt(2 / math.pi)
    t = jnp.tanh(outer * x * (1 + bend * square))
    share = 0.5 * (1 + t)
    slope = share + 0.5 * outer * x * (1 - jnp.square(t)) * (1 + 3 * bend * square)
    d_gate = g * up.astype(jnp.float32) * slope
    return d_gate.astype(gate.dtype), (g * x * share).astype(up.dtype)


gated_gelu.defvjp(_gated_gelu_forward, _gated_gelu_backward)


def soft_cap(x: Float[Array, "*shape"], cap: float | None) -> Float[Array, "*shape"]:
    """cap * tanh(x / cap); x itself if cap is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


class RMSNorm(nn.Module):
    """RMS norm with a plain scale g (not 1 + g), float32 inside, result in the input's dtype."""

    eps: float
    axis: str = "norm"
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalise the last axis."""
        init = constant(self.initial_scale)
        scale = param(self, "scale", x.shape[-1:], (self.axis,), init)
        return (rms_normalize(x, self.eps) * scale.astype(jnp.float32)).astype(x.dtype)


class MLP(nn.Module):
    """down(gelu(gate x) * up x), F = d_ff (spec 4.6)."""

    d_ff: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Apply to every token."""
        d_model = x.shape[-1]
        inner = (d_model, self.d_ff)
        gate = param(self, "gate_proj", inner, ("embed", "mlp"), fan_in(d_model))
        up = param(self, "up_proj", inner, ("embed", "mlp"), fan_in(d_model))
        down = param(self, "down_proj", inner[::-1], ("mlp", "embed"), fan_in(self.d_ff))
        hidden = gated_gelu(
            project(x, gate, "btd,df->btf", self.dtype), project(x, up, "btd,df->btf", self.dtype)
        )
        return project(hidden, down, "btf,fd->btd", self.dtype)


def unembed(hidden: Float[Array, "B T D"], table: Float[Array, "V D"]) -> Float[Array, "B T V"]:
    """float32 products of hidden states with every row of the table."""
    return jnp.einsum("btd,vd->btv", hidden, table, preferred_element_type=jnp.float32)


class Embedder(nn.Module):
    """The token table, tied: rows scaled by sqrt(D) on the way in, unscaled for logits (spec 4.1, 4.9).

    unembed: how logits are computed.
    """

    config: ModelConfig
    dtype: Any
    unembed: Callable[[Array, Array], Array] = unembed

    def setup(self) -> None:
        """Declare the table."""
        shape = (self.config.vocab_size, self.config.d_model)
        # Unit-variance rows after the sqrt(D) scaling, and logits of unit variance at the tied output.
        self.table = param(self, "table", shape, ("vocab", "embed"), fan_in(self.config.d_model))

    def encode(self, tokens: Int[Array, "B T"], rules: Rules) -> Float[Array, "B T D"]:
        """Rows of the table times sqrt(D), the factor rounded to the compute dtype as upstream does.

        rules: how a mesh cuts the table.
        """
        scale = jnp.asarray(math.sqrt(self.config.d_model), self.dtype)
        return look_up(self.table, ("vocab", "embed"), tokens, self.dtype, rules) * scale

    def decode(self, hidden: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """float32 logits after the final soft cap."""
        logits = self.unembed(hidden, self.table.astype(self.dtype))
        return soft_cap(logits, self.config.logit_softcap)


class PerLayerEmbedder(nn.Module):
    """Per-layer inputs: a second, layer-wise table plus a projection of the embeddings (spec 4.7)."""

    config: ModelConfig
    dtype: Any

    def setup(self) -> None:
        """Declare table, projection and norm."""
        c = self.config
        per_layer = (c.num_layers, c.per_layer_input_width)
        axes = (None, "per_layer_input")
        # One row for an id: with the layers as an axis of its own, TPUs keep the table in an order in which
        # rows are not together, and copy all of it (E2B: 4.4 GiB) before they look anything up.
        self.table = param(
            self,
            "table",
            (c.per_layer_vocab_size, math.prod(per_layer)),
            ("per_layer_vocab", None),
            fan_in(per_layer[1]),
        )
        self.projection = param(
            self, "projection", (c.d_model, *per_layer), ("embed", *axes), fan_in(c.d_model)
        )
        self.norm = RMSNorm(c.norm_eps, axis="per_layer_input")

    def __call__(
        self, tokens: Int[Array, "B T"], embeddings: Float[Array, "B T D"], rules: Rules
    ) -> Float[Array, "L B T P"]:
        """Inputs for every layer, from token ids (placeholders already replaced by pad) and the
        embeddings that enter layer 0 (soft tokens already in place). rules: how a mesh cuts the table."""
        scale = jnp.asarray(math.sqrt(self.config.per_layer_input_width), self.dtype)
        names = ("per_layer_vocab", None)
        token_part = look_up(self.table, names, tokens, self.dtype, rules) * scale
        context = project(embeddings, self.projection, "btd,dlp->btlp", self.dtype)
        context = context * self.config.d_model**-0.5
        token_part = token_part.reshape(context.shape)
        combined = (token_part + self.norm(context)) * 2**-0.5
        return jnp.moveaxis(combined, 2, 0)
