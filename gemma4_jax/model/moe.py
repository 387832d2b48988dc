"""Routed experts: float32 router, sorted grouped matmul, nothing dropped (spec 4.8).

Letters: M tokens (B * T), D d_model, F expert width, E experts, A active experts per token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from gemma4_jax.collectives import over_tokens
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.layers import constant, fan_in, gated_gelu, param, rms_normalize
from gemma4_jax.model.weights import Weight, project_groups

# (rows [M, D] sorted by expert, weights [E, D, F], group_sizes int32 [E]) -> [M, F]
GroupedMatmul = Callable[[Array, Array, Array], Array]
# (normed [B, T, D], weights [B, T, A], index [B, T, A], (gate, up, down), grouped matmul, dtype, real [B, T] or
# None) -> [B, T, D], and how many (token, expert) pairs of real tokens were dropped, int32 []
RoutedExperts = Callable[
    [
        Array,
        Array,
        Array,
        tuple[Weight, Weight, Weight],
        GroupedMatmul,
        Any,
        Array | None,
    ],
    tuple[Array, Array],
]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterNoise:
    """What stands as `router_noise` beside a router whose logits get noise; stacked over layers as it is.

    weight: W_noise [D, E]. key: key data of the draw, uint32 [2].
    """

    weight: Array
    key: Array


def noisy_logits(
    logits: Float[Array, "M E"], read: Float[Array, "M D"], noise: RouterNoise
) -> Float[Array, "M E"]:
    """logits + N(0, 1) * softplus(x W_noise), x what the router reads (arXiv 1701.06538, equation 4)."""
    weight = noise.weight.astype(jnp.float32)
    size = jax.nn.softplus(jnp.einsum("md,de->me", read, weight))
    return logits + jax.random.normal(jax.random.wrap_key_data(noise.key), logits.shape) * size


def route(
    logits: Float[Array, "M E"], expert_scale: Float[Array, " E"], active: int
) -> tuple[Float[Array, "M A"], Int[Array, "M A"], Float[Array, "M E"]]:
    """Weights and indices of the `active` most probable experts of each token, and all probabilities.

    Weights are renormalised over the chosen experts, then multiplied by each expert's own scale. float32.
    """
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    top, index = jax.lax.top_k(probabilities, active)
    weights = top / jnp.sum(top, axis=-1, keepdims=True)
    return weights * expert_scale.astype(jnp.float32)[index], index, probabilities


def experts(
    x: Float[Array, "M D"],
    weights: Float[Array, "M A"],
    index: Int[Array, "M A"],
    gate: Weight,
    up: Weight,
    down: Weight,
    grouped_matmul: GroupedMatmul,
    dtype: Any,
) -> Float[Array, "M D"]:
    """Sum over each token's experts of weight * down(gelu(gate x) * up x). No token is dropped.

    gate, up: [E, D, F]; down: [E, F, D]; dtype: of the products.

    (token, expert) pairs are sorted by expert so that every expert works on one run of rows; the inverse
    permutation brings results back, which keeps the sum over A deterministic (no scatter-add).
    """
    active = index.shape[-1]
    order = jnp.argsort(index.reshape(-1), stable=True)
    group_sizes = jnp.bincount(index.reshape(-1), length=gate.shape[0]).astype(jnp.int32)
    rows = x[order // active]

    def product(rows: Array, weight: Weight) -> Array:
        return project_groups(rows, weight, group_sizes, grouped_matmul, dtype)

    out = product(gated_gelu(product(rows, gate), product(rows, up)), down)
    by_token = out[jnp.argsort(order)].reshape(*index.shape, -1)
    return jnp.einsum("ma,mad->md", weights, by_token.astype(jnp.float32)).astype(x.dtype)


def experts_of_tokens(
    normed: Float[Array, "B T D"],
    weights: Float[Array, "B T A"],
    index: Int[Array, "B T A"],
    matrices: tuple[Weight, Weight, Weight],
    grouped_matmul: GroupedMatmul,
    dtype: Any,
    real: Bool[Array, "B T"] | None = None,
) -> tuple[Float[Array, "B T D"], Int[Array, ""]]:
    """`experts` on every device's own tokens, each with all matrices (gate, up, down); and 0: none dropped."""
    del real

    def own(normed: Array, weights: Array, index: Array, *matrices: Weight) -> Array:
        rows, weights, index = (x.reshape(-1, x.shape[-1]) for x in (normed, weights, index))
        gate, up, down = matrices
        out = experts(rows, weights, index, gate, up, down, grouped_matmul, dtype)
        return out.reshape(normed.shape)

    out: Array = over_tokens(own, (normed, weights, index), matrices)
    return out, jnp.zeros((), jnp.int32)


def routing_sums(
    logits: Float[Array, "M E"],
    probabilities: Float[Array, "M E"],
    index: Int[Array, "M A"],
    real: Float[Array, " M"],
    dropped: Int[Array, ""],
) -> dict[str, Array]:
    """What losses and logs ask of a layer's router, summed over real tokens, float32.

    chosen [E]: how often each expert was; probabilities [E]; z []: squared log-normalisers; tokens []; dropped
    []: (token, expert) pairs that no expert saw.
    """
    chosen = jnp.bincount(
        index.reshape(-1), weights=jnp.repeat(real, index.shape[-1]), length=logits.shape[-1]
    )
    normalizers = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return {
        "chosen": chosen,
        "probabilities": (probabilities * real[:, None]).sum(0),
        "z": (jnp.square(normalizers) * real).sum(),
        "tokens": real.sum(),
        "dropped": dropped.astype(jnp.float32),
    }


class MoE(nn.Module):
    """Router and experts of one layer."""

    config: ModelConfig
    dtype: Any
    grouped_matmul: GroupedMatmul
    routed_experts: RoutedExperts = experts_of_tokens

    @nn.compact
    def __call__(
        self,
        stream: Float[Array, "B T D"],
        normed: Float[Array, "B T D"],
        real: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        """stream: the residual stream, which the router reads; normed: what the experts read.

        real: False for padding, which `routing_sums` leave out, and which takes nobody's place where experts
        have limits.
        """
        moe = self.config.moe
        assert moe is not None
        d_model, num, width = stream.shape[-1], moe.num_experts, moe.d_ff
        ones = constant(1.0)
        router = param(self, "router_proj", (d_model, num), ("embed", "experts"), fan_in(1))
        router_scale = param(self, "router_scale", (d_model,), ("norm",), ones)
        expert_scale = param(self, "expert_scale", (num,), ("experts",), ones)
        wide, axes = (num, d_model, width), ("experts", "embed", "expert_mlp")
        gate = param(self, "gate_proj", wide, axes, fan_in(d_model))
        up = param(self, "up_proj", wide, axes, fan_in(d_model))
        down = param(
            self,
            "down_proj",
            (num, width, d_model),
            ("experts", "expert_mlp", "embed"),
            fan_in(width),
        )

        rows = stream.reshape(-1, d_model)
        read = rms_normalize(rows, self.config.norm_eps) * router_scale * d_model**-0.5
        logits = jnp.einsum("md,de->me", read, router, preferred_element_type=jnp.float32)
        # No parameter of the model: whoever trains with noise puts it there, with a key for each pass.
        noise: Any = self.get_variable("params", "router_noise")
        if isinstance(noise, RouterNoise):
            logits = noisy_logits(logits, read, noise)
        weights, index, probabilities = route(logits, expert_scale, moe.num_experts_per_token)
        self.sow("intermediates", "router_probs", probabilities)
        self.sow("intermediates", "topk_weight", weights)
        self.sow("intermediates", "topk_index", index)
        by_row, chosen = (x.reshape(*stream.shape[:2], -1) for x in (weights, index))
        matrices = (gate, up, down)
        out, dropped = self.routed_experts(
            normed, by_row, chosen, matrices, self.grouped_matmul, self.dtype, real
        )
        if self.is_mutable_collection("routing"):
            count = jnp.ones(rows.shape[0]) if real is None else real.reshape(-1)
            sums = routing_sums(logits, probabilities, index, count.astype(jnp.float32), dropped)
            self.sow("routing", "sums", sums, init_fn=lambda: None, reduce_fn=lambda _, new: new)
        return out
