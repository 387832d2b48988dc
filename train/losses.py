"""Losses of SFT and DPO as pure functions: parameters and a batch -> sums and weights.

A loss returns sums, never means: the step divides once, by the weight of the whole batch, after all
micro-batches. Log-probabilities come in chunks from gemma4_jax/logprobs.py, so no [B,T,V] array
exists. Not here: gradients and accumulation (step.py).

Letters: B examples, T positions, D model, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from gemma4_jax.config import ModelConfig
from gemma4_jax.logprobs import token_logprobs

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]
# What is averaged: (sum, weight); the mean is sum / weight once all micro-batches are added.
Sums = dict[str, tuple[jax.Array, jax.Array]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Loss:
    """sum, weight: float32 [], the loss is sum / weight. metrics: more such pairs, for the log."""

    sum: jax.Array
    weight: jax.Array
    metrics: Sums


class LossFn(Protocol):
    """Loss of one micro-batch.

    key: PRNG key of this micro-batch. frozen: what the loss reads but does not train (reference
    parameters, or None).
    """

    def __call__(self, params: Params, batch: Batch, key: jax.Array, frozen: Any) -> Loss: ...


def batch_logprobs(
    module: nn.Module, config: ModelConfig, params: Params, batch: Batch
) -> Float[Array, "B T"]:
    """Log-probability of each target that counts, 0 elsewhere; float32 [B,T]."""
    hidden = module.apply(
        {"params": params},
        batch["tokens"],
        positions=batch["positions"],
        segment_ids=batch["segment_ids"],
    )
    return token_logprobs(
        cast(jax.Array, hidden),
        params["embed"]["table"],
        batch["targets"],
        softcap=config.logit_softcap,
        mask=batch["loss_mask"],
    )


def make_sft_loss(module: nn.Module, config: ModelConfig) -> LossFn:
    """Mean negative log-likelihood per target token, over batches of arrays [B,T]."""

    def loss_fn(params: Params, batch: Batch, key: jax.Array, frozen: Any) -> Loss:
        del key, frozen
        logprobs = batch_logprobs(module, config, params, batch)
        weight = batch["loss_mask"].sum().astype(jnp.float32)
        return Loss(sum=-logprobs.sum(), weight=weight, metrics={})

    return loss_fn


def sequence_logprobs(
    module: nn.Module, config: ModelConfig, params: Params, batch: Batch
) -> Float[Array, "B 2"]:
    """Summed log-probability of each completion, chosen and rejected in one forward; float32 [B,2].

    batch: arrays [B,2,T].
    """
    pairs, sides, length = batch["tokens"].shape
    flat = {
        name: batch[name].reshape(pairs * sides, length)
        for name in ("tokens", "targets", "loss_mask", "segment_ids", "positions")
    }
    return batch_logprobs(module, config, params, flat).sum(-1).reshape(pairs, sides)


def sigmoid_losses(
    policy: Float[Array, "B 2"], reference: Float[Array, "B 2"], beta: float
) -> Float[Array, " B"]:
    """-log sigmoid(beta * ((log-ratio of chosen) - (log-ratio of rejected))) per pair.

    policy, reference: summed log-probabilities of (chosen, rejected). arXiv 2305.18290, equation 7.
    """
    log_ratio = policy - reference
    return -jax.nn.log_sigmoid(beta * (log_ratio[:, 0] - log_ratio[:, 1]))


def preference_metrics(
    policy: Float[Array, "B 2"], reference: Float[Array, "B 2"], beta: float
) -> Sums:
    """Implicit rewards beta * log-ratio and log-probabilities, under the names TRL logs them by."""
    rewards = beta * (policy - reference)
    margins = rewards[:, 0] - rewards[:, 1]
    per_pair = {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).astype(jnp.float32),
        "logps/chosen": policy[:, 0],
        "logps/rejected": policy[:, 1],
    }
    pairs = jnp.float32(policy.shape[0])
    return {name: (values.sum(), pairs) for name, values in per_pair.items()}


def make_dpo_loss(module: nn.Module, config: ModelConfig, *, beta: float, live: bool) -> LossFn:
    """Mean sigmoid preference loss per pair, over batches of arrays [B,2,T].

    live: the reference's log-probabilities are computed from `frozen` (its parameters); otherwise
    they are read from the batch, `reference_logprobs` float32 [B,2].
    """

    def loss_fn(params: Params, batch: Batch, key: jax.Array, frozen: Any) -> Loss:
        del key
        policy = sequence_logprobs(module, config, params, batch)
        if live:
            reference = jax.lax.stop_gradient(sequence_logprobs(module, config, frozen, batch))
        else:
            reference = batch["reference_logprobs"]
        losses = sigmoid_losses(policy, reference, beta)
        return Loss(
            sum=losses.sum(),
            weight=jnp.float32(losses.shape[0]),
            metrics=preference_metrics(jax.lax.stop_gradient(policy), reference, beta),
        )

    return loss_fn


def reference_pass(
    module: nn.Module, config: ModelConfig
) -> Callable[[Params, Any], Float[Array, "B 2"]]:
    """Compiled function (params, batch) -> log-probabilities of the reference, float32 [B,2]."""
    return jax.jit(lambda params, batch: sequence_logprobs(module, config, params, batch))
