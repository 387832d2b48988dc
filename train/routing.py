"""What keeps a router healthy in training: balance and z losses, a router that stays as it is, its load, and
how much of that load experts take.

Of what each layer's router did (`gemma4_jax/model/moe.py`, `routing_sums`), padding left out. Not here: the
main losses (losses.py).

Letters: L layers, E experts, A active experts per token.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from configs.losses import RouterConfig
from gemma4_jax.config import ModelConfig
from gemma4_jax.model.transformer import Transformer
from gemma4_jax.parallel.expert_dispatch import dispatch_within

Sums = dict[str, tuple[jax.Array, jax.Array]]

# What the frozen-router option leaves as it is.
_ROUTER_LEAVES = ("router_proj", "router_scale", "expert_scale")


def is_router(path: Any) -> bool:
    """Whether a path of the parameter tree leads to a part of a router."""
    last = path[-1]
    return isinstance(last, jax.tree_util.DictKey) and str(last.key) in _ROUTER_LEAVES


def freeze_router(params: Any) -> Any:
    """`params` through whose routers no gradient flows."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jax.lax.stop_gradient(leaf) if is_router(path) else leaf, params
    )


def limited(module: Transformer, config: RouterConfig) -> Transformer:
    """`module` whose experts take what `capacity_factor` lets them; as it is where that is None."""
    if config.capacity_factor is None:
        return module
    experts = dispatch_within(config.capacity_factor)
    return module.clone(parts=dataclasses.replace(module.parts, routed_experts=experts))


def layer_sums(routing: Any) -> dict[str, jax.Array]:
    """The "routing" collection of a pass as arrays [L, E] (chosen, probabilities) and [L] (the others)."""
    found: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(routing):
        name = str(path[-1].key)
        tail = leaf.shape[-1:] if name in ("chosen", "probabilities") else ()
        found.setdefault(name, []).append(leaf.reshape(-1, *tail))
    return {name: jnp.concatenate(parts) for name, parts in found.items()}


def routing_loss(
    routing: Any, model: ModelConfig, config: RouterConfig, tokens: jax.Array
) -> tuple[jax.Array, Sums]:
    """A micro-batch's share of the routers' losses, float32 [], and sums for the log.

    Balance: E sum_e f_e P_e, f the shares of choices and P the mean probabilities, a mean over layers; 1 where
    all experts get the same (Switch, arXiv 2101.03961, equation 4, of this micro-batch's tokens). z: the mean
    of squared log-normalisers (arXiv 2202.08906, equation 5). A micro-batch counts by its tokens: `tokens` are
    those of the whole step.
    """
    assert model.moe is not None
    experts, active = model.moe.num_experts, model.moe.num_experts_per_token
    sums = layer_sums(routing)
    here = sums["tokens"][0]
    shares = sums["chosen"] / jnp.maximum(active * here, 1.0)
    means = sums["probabilities"] / jnp.maximum(here, 1.0)
    balance = experts * (shares * means).sum(-1).mean()
    z = (sums["z"] / jnp.maximum(here, 1.0)).mean()
    value = (config.balance_loss * balance + config.z_loss * z) * here / tokens
    load = experts * shares.mean(0)
    spread = {"max": experts * shares.max(-1).mean(), "min": experts * shares.min(-1).mean()}
    metrics = {
        "moe/balance": balance,
        "moe/z": z,
        **{f"moe/load_{name}": found for name, found in spread.items()},
        **{f"moe/load/{number}": load[number] for number in range(experts)},
    }
    if config.capacity_factor is not None:
        metrics["moe/dropped"] = (sums["dropped"] / jnp.maximum(active * here, 1.0)).mean()
    return value, {n: (jax.lax.stop_gradient(x) * here, here) for n, x in metrics.items()}
