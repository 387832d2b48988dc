"""Losses of SFT and DPO as pure functions: parameters and a batch -> the batch's share of the loss.

A loss is a sum over what it averages, divided by the total of the whole step (`batch_totals`), which is
known before any micro-batch runs: terms with totals of their own (pairs, tokens) then accumulate exactly,
with one backward pass a micro-batch. Log-probabilities come in chunks from gemma4_jax/logprobs.py, so no
[B,T,V] array exists. Not here: the preference losses themselves (preference.py), gradients and
accumulation (step.py).

Letters: B examples, T positions, D model, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from configs.schema import PreferenceConfig, SFTLossConfig
from gemma4_jax.config import ModelConfig
from gemma4_jax.logprobs import TokenScores, token_logprobs, token_scores
from train.preference import Pairs, preference_losses, preference_metrics

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]
# What is averaged: (sum, weight); the mean is sum / weight once all micro-batches are added.
Sums = dict[str, tuple[jax.Array, jax.Array]]
PLAIN_SFT = SFTLossConfig()
# float32 [] by name: how much of something a whole step has.
Totals = Mapping[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Loss:
    """value: float32 [], a micro-batch's share of the step's loss; the shares add up to it.
    metrics: sums and weights for the log, which add up as well."""

    value: jax.Array
    metrics: Sums


class LossFn(Protocol):
    """Loss of one micro-batch.

    totals: `batch_totals` of the whole step. key: PRNG key of this micro-batch. frozen: what the loss
    reads but does not train (reference parameters, or None).
    """

    def __call__(
        self, params: Params, batch: Batch, totals: Totals, key: jax.Array, frozen: Any
    ) -> Loss: ...


def batch_totals(batch: Batch) -> dict[str, jax.Array]:
    """What the loss terms divide by: rows, tokens (padding is none), targets; of pairs, chosen_targets."""
    mask = batch["loss_mask"]
    totals = {
        "rows": jnp.float32(mask.shape[0]),
        "tokens": (batch["segment_ids"] > 0).sum().astype(jnp.float32),
        "targets": mask.sum().astype(jnp.float32),
    }
    if mask.ndim == 3:
        totals["chosen_targets"] = mask[:, 0].sum().astype(jnp.float32)
    return totals


def _hidden(
    module: nn.Module, params: Params, batch: Batch, noise: jax.Array | None = None
) -> Float[Array, "B T D"]:
    return cast(
        jax.Array,
        module.apply(
            {"params": params},
            batch["tokens"],
            positions=batch["positions"],
            segment_ids=batch["segment_ids"],
            noise=noise,
        ),
    )


def batch_logprobs(
    module: nn.Module, config: ModelConfig, params: Params, batch: Batch
) -> Float[Array, "B T"]:
    """Log-probability of each target that counts, 0 elsewhere; float32 [B,T]."""
    return token_logprobs(
        _hidden(module, params, batch),
        params["embed"]["table"],
        batch["targets"],
        softcap=config.logit_softcap,
        mask=batch["loss_mask"],
    )


def batch_scores(
    module: nn.Module,
    config: ModelConfig,
    params: Params,
    batch: Batch,
    noise: jax.Array | None = None,
) -> TokenScores:
    """What the model says about each target that counts, 0 elsewhere; float32 [B,T].

    noise: [B,T,D], added to the embeddings.
    """
    return token_scores(
        _hidden(module, params, batch, noise),
        params["embed"]["table"],
        batch["targets"],
        softcap=config.logit_softcap,
        mask=batch["loss_mask"],
    )


def neftune_noise(
    key: jax.Array, segment_ids: Int[Array, "B T"], d_model: int, alpha: float
) -> Float[Array, "B T D"]:
    """Uniform noise of size alpha / sqrt(L D), L the tokens of each segment; 0 on padding (NEFTune)."""
    rows, length = segment_ids.shape
    counts = jax.vmap(lambda ids: jnp.bincount(ids, length=length + 1))(segment_ids)
    lengths = jnp.take_along_axis(counts, segment_ids, axis=1)
    size = jnp.where(segment_ids > 0, alpha * jax.lax.rsqrt(lengths * float(d_model)), 0.0)
    noise = jax.random.uniform(key, (rows, length, d_model), minval=-1.0, maxval=1.0)
    return noise * size[..., None]


def make_sft_loss(
    module: nn.Module, config: ModelConfig, loss: SFTLossConfig = PLAIN_SFT
) -> LossFn:
    """Mean negative log-likelihood per target token, and what `loss` adds; over batches of arrays [B,T]."""

    def loss_fn(params: Params, batch: Batch, totals: Totals, key: jax.Array, frozen: Any) -> Loss:
        del frozen
        noise = None
        if loss.neftune_alpha:
            noise = neftune_noise(key, batch["segment_ids"], config.d_model, loss.neftune_alpha)
        scores = batch_scores(module, config, params, batch, noise)
        nll, smoothing = -scores.logprobs.sum(), loss.label_smoothing
        total = (1 - smoothing) * nll
        if smoothing:
            # -log p of a token drawn from the whole vocabulary.
            total += smoothing * (scores.normalizers - scores.mean_logits).sum()
        if loss.z_loss:
            total += loss.z_loss * jnp.square(scores.normalizers).sum()
        targets = batch["loss_mask"].sum().astype(jnp.float32)
        per_target = {
            "entropy": scores.entropy.sum(),
            "mean_token_accuracy": scores.top1.sum(),
            **({"nll": nll} if smoothing or loss.z_loss else {}),
        }
        metrics = {n: (jax.lax.stop_gradient(value), targets) for n, value in per_target.items()}
        return Loss(value=total / totals["targets"], metrics=metrics)

    return loss_fn


def _rows(batch: Batch) -> Batch:
    """Pairs, arrays [B,2,T], as rows [2B,T]."""
    names = ("tokens", "targets", "loss_mask", "segment_ids", "positions")
    return {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in names}


def completion_weights(mask: Bool[Array, "B 2 T"], ld_alpha: float | None) -> Float[Array, "B 2 T"]:
    """Weight of each target in its completion's log-probability.

    1, or `ld_alpha` for what is beyond the length of the shorter completion (LD-DPO, arXiv 2409.06411).
    """
    weights = mask.astype(jnp.float32)
    if ld_alpha is None:
        return weights
    place = jnp.cumsum(mask, axis=-1)  # 1 at a completion's first token
    shorter = mask.sum(-1).min(-1)[:, None, None]
    return weights * jnp.where(place > shorter, ld_alpha, 1.0)


def sequence_logprobs(
    module: nn.Module,
    config: ModelConfig,
    params: Params,
    batch: Batch,
    ld_alpha: float | None = None,
) -> Float[Array, "B 2"]:
    """Summed log-probability of each completion, chosen and rejected in one forward; float32 [B,2].

    batch: arrays [B,2,T]. ld_alpha: as in `completion_weights`.
    """
    mask = batch["loss_mask"]
    logprobs = batch_logprobs(module, config, params, _rows(batch)).reshape(mask.shape)
    return (logprobs * completion_weights(mask, ld_alpha)).sum(-1)


def make_dpo_loss(
    module: nn.Module, config: ModelConfig, loss: PreferenceConfig, *, live: bool
) -> LossFn:
    """The weighted terms of `loss`, over batches of arrays [B,2,T].

    Preference losses are means over pairs; "sft" is the negative log-likelihood of the chosen completions,
    per token. live: the reference's log-probabilities are computed from `frozen` (its parameters);
    otherwise they are read from the batch, `reference_logprobs` float32 [B,2].
    """

    def loss_fn(params: Params, batch: Batch, totals: Totals, key: jax.Array, frozen: Any) -> Loss:
        del key
        mask = batch["loss_mask"]
        scores = jax.tree.map(
            lambda x: x.reshape(mask.shape), batch_scores(module, config, params, _rows(batch))
        )
        if live:
            reference = jax.lax.stop_gradient(
                sequence_logprobs(module, config, frozen, batch, loss.ld_alpha)
            )
        else:
            reference = batch["reference_logprobs"]
        return pair_loss(scores, reference, mask, totals, loss)

    return loss_fn


def pair_loss(
    scores: TokenScores,
    reference: Float[Array, "B 2"],
    mask: Bool[Array, "B 2 T"],
    totals: Totals,
    loss: PreferenceConfig,
) -> Loss:
    """The terms of `loss` from what the policy says of each target, float32 [B,2,T], and the reference."""
    policy = (scores.logprobs * completion_weights(mask, loss.ld_alpha)).sum(-1)
    lengths = mask.sum(-1).astype(jnp.float32)
    pairs = Pairs(policy=policy, reference=reference, lengths=lengths)
    share = pair_weights(scores, lengths) if loss.wpo else jnp.float32(1.0)
    here = {"rows": jnp.float32(mask.shape[0]), "chosen_targets": lengths[:, 0].sum()}
    value = jnp.float32(0.0)
    metrics: Sums = {}
    for kind, weight in loss.terms:
        if kind == "sft":
            total, of = -scores.logprobs[:, 0].sum(), "chosen_targets"
        else:
            total, of = (preference_losses(pairs, kind, loss) * share).sum(), "rows"
        value += weight * total / totals[of]
        if len(loss.terms) > 1:
            metrics[f"loss/{kind}"] = (jax.lax.stop_gradient(total), here[of])
    pairs, scores = jax.lax.stop_gradient((pairs, scores))
    return Loss(value=value, metrics=metrics | _dpo_metrics(pairs, scores, loss.beta))


def pair_weights(scores: TokenScores, lengths: Float[Array, "B 2"]) -> Float[Array, " B"]:
    """How likely the policy is to write a pair, measured a token by what it would write itself (WPO)."""
    aligned = (scores.logprobs - scores.log_collision).sum(-1)  # 0 where nothing counts
    means = aligned / jnp.maximum(lengths, 1.0)
    return jax.lax.stop_gradient(jnp.exp(means.sum(-1)))


def _dpo_metrics(pairs: Pairs, scores: TokenScores, beta: float) -> Sums:
    """Under the names TRL logs them by: means over pairs, and over the targets of completions."""
    rows, targets = jnp.float32(pairs.policy.shape[0]), pairs.lengths.sum(0)
    per_pair = {
        name: (values.sum(), rows) for name, values in preference_metrics(pairs, beta).items()
    }
    return per_pair | {
        "entropy": (scores.entropy.sum(), targets.sum()),
        "mean_token_accuracy": (scores.top1[:, 0].sum(), targets[0]),
        "logits/chosen": (scores.mean_logits[:, 0].sum(), targets[0]),
        "logits/rejected": (scores.mean_logits[:, 1].sum(), targets[1]),
    }


def reference_pass(
    module: nn.Module, config: ModelConfig, ld_alpha: float | None = None
) -> Callable[[Params, Any], Float[Array, "B 2"]]:
    """Compiled function (params, batch) -> log-probabilities of the reference, float32 [B,2]."""
    return jax.jit(lambda params, batch: sequence_logprobs(module, config, params, batch, ld_alpha))
