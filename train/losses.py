"""Losses of SFT and DPO as pure functions: parameters and a batch -> the batch's share of the loss.

A loss is a sum over what it averages, divided by the total of the whole step (`batch_totals`), which is
known before any micro-batch runs: terms with totals of their own (pairs, tokens) then accumulate exactly,
with one backward pass a micro-batch. Log-probabilities come in chunks from gemma4_jax/logprobs.py, so no
[B,T,V] array exists. Not here: the preference losses themselves (preference.py), gradients and
accumulation (step.py).

Letters: B examples, T positions, D model, V vocabulary; R rows of tokens, N pairs in them, S in a packed row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from configs.losses import PreferenceConfig, RouterConfig, SFTLossConfig
from gemma4_jax.config import ModelConfig
from gemma4_jax.logprobs import TokenScores, token_logprobs, token_scores
from gemma4_jax.model.transformer import Transformer
from train.branches import branch_sums
from train.preference import Pairs, preference_losses, preference_metrics
from train.routing import freeze_router, limited, routing_loss

Params = dict[str, Any]
Batch = Mapping[str, jax.Array]
# Arrays of a batch that have a number for every token, on their last axis.
PER_TOKEN = ("tokens", "targets", "loss_mask", "segment_ids", "positions", "branches")
# What is averaged: (sum, weight); the mean is sum / weight once all micro-batches are added.
Sums = dict[str, tuple[jax.Array, jax.Array]]
PLAIN_SFT, PLAIN_ROUTER = SFTLossConfig(), RouterConfig()
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
    """What the loss terms divide by, float32 []: tokens (padding is none) and targets; of a batch of pairs,
    pairs and chosen_targets."""
    mask = batch["loss_mask"]
    totals = {"targets": mask.sum(), "tokens": (batch["segment_ids"] > 0).sum()}
    if "branches" in batch:
        chosen = mask & (batch["branches"] == 1)
        totals |= {"pairs": batch["pair_mask"].sum(), "chosen_targets": chosen.sum()}
    elif mask.ndim == 3:
        totals |= {"pairs": jnp.asarray(mask.shape[0]), "chosen_targets": mask[:, 0].sum()}
    return {name: total.astype(jnp.float32) for name, total in totals.items()}


def _hidden(
    module: nn.Module, params: Params, batch: Batch, noise: jax.Array | None = None
) -> Float[Array, "B T D"]:
    return _pass(module, params, batch, noise, routing=False)[0]


def _pass(
    module: nn.Module, params: Params, batch: Batch, noise: jax.Array | None, routing: bool
) -> tuple[jax.Array, Any]:
    """Hidden states [B,T,D], and what the routers did if that is asked for."""
    hidden, seen = module.apply(
        {"params": params},
        batch["tokens"],
        positions=batch["positions"],
        segment_ids=batch["segment_ids"],
        branches=batch.get("branches"),
        noise=noise,
        mutable=["routing"] if routing else [],
    )
    return cast(jax.Array, hidden), seen.get("routing", {})


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
) -> tuple[TokenScores, Any]:
    """What the model says about each target that counts, 0 elsewhere, float32 [B,T]; what its routers did.

    noise: [B,T,D], added to the embeddings.
    """
    hidden, routing = _pass(module, params, batch, noise, routing=config.moe is not None)
    scores = token_scores(
        hidden,
        params["embed"]["table"],
        batch["targets"],
        softcap=config.logit_softcap,
        mask=batch["loss_mask"],
    )
    return scores, routing


def add_routing(
    loss: Loss, routing: Any, config: ModelConfig, router: RouterConfig, totals: Totals
) -> Loss:
    """`loss` with those of the routers, if the model has any."""
    if config.moe is None:
        return loss
    value, metrics = routing_loss(routing, config, router, totals["tokens"])
    return Loss(value=loss.value + value, metrics=loss.metrics | metrics)


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
    module: Transformer,
    config: ModelConfig,
    loss: SFTLossConfig = PLAIN_SFT,
    router: RouterConfig = PLAIN_ROUTER,
) -> LossFn:
    """Mean negative log-likelihood per target token, and what `loss` and `router` add; over arrays [B,T]."""
    module = limited(module, router)

    def loss_fn(params: Params, batch: Batch, totals: Totals, key: jax.Array, frozen: Any) -> Loss:
        del frozen
        noise = None
        if loss.neftune_alpha:
            noise = neftune_noise(key, batch["segment_ids"], config.d_model, loss.neftune_alpha)
        params = freeze_router(params) if router.freeze else params
        scores, routing = batch_scores(module, config, params, batch, noise)
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
        found = Loss(value=total / totals["targets"], metrics=metrics)
        return add_routing(found, routing, config, router, totals)

    return loss_fn


def _rows(batch: Batch) -> Batch:
    """A batch of pairs as rows of tokens: [B,2,T] as [2B,T]; packed pairs [B,T] as they are."""
    names = (name for name in PER_TOKEN if name in batch)
    return {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in names}


def completion_sums(values: Float[Array, "R T"], batch: Batch) -> Float[Array, "N 2"]:
    """Sums of `values`, an array like `_rows(batch)`, over each completion; N pairs, (chosen, rejected).

    Of packed pairs there are as many for each row as a row can hold, 0 where `pair_mask` is False.
    """
    if "branches" in batch:
        pairs = batch["pair_mask"].shape[1]
        return branch_sums(values, batch["segment_ids"], batch["branches"], pairs).reshape(-1, 2)
    return values.reshape(-1, 2, values.shape[-1]).sum(-1)


def completion_weights(mask: Bool[Array, "B 2 T"], ld_alpha: float | None) -> Float[Array, "R T"]:
    """Weight of each target in its completion's log-probability, an array like `_rows` makes.

    1, or `ld_alpha` for what is beyond the length of the shorter completion (LD-DPO, arXiv 2409.06411).
    """
    weights = mask.astype(jnp.float32)
    if ld_alpha is not None:
        place = jnp.cumsum(mask, axis=-1)  # 1 at a completion's first token
        shorter = mask.sum(-1).min(-1)[:, None, None]
        weights = weights * jnp.where(place > shorter, ld_alpha, 1.0)
    return weights.reshape(-1, mask.shape[-1])


def sequence_logprobs(
    module: nn.Module,
    config: ModelConfig,
    params: Params,
    batch: Batch,
    ld_alpha: float | None = None,
) -> Float[Array, "N 2"]:
    """Summed log-probability of each completion, chosen and rejected in one forward; float32 [N,2].

    batch: arrays [B,2,T], then N is B; or packed pairs. ld_alpha: as in `completion_weights`.
    """
    logprobs = batch_logprobs(module, config, params, _rows(batch))
    if ld_alpha is not None:
        logprobs = logprobs * completion_weights(batch["loss_mask"], ld_alpha)
    return completion_sums(logprobs, batch)


def make_dpo_loss(
    module: Transformer,
    config: ModelConfig,
    loss: PreferenceConfig,
    *,
    live: bool,
    router: RouterConfig = PLAIN_ROUTER,
) -> LossFn:
    """The weighted terms of `loss`, over batches of arrays [B,2,T] or of packed pairs.

    Preference losses are means over pairs; "sft" is the negative log-likelihood of the chosen completions,
    per token. live: the reference's log-probabilities are computed from `frozen` (its parameters);
    otherwise they are read from the batch, `reference_logprobs` float32 [B,2] (packed: [B,S,2]).
    Nothing is dropped from a reference's experts.
    """
    policy = limited(module, router)

    def loss_fn(params: Params, batch: Batch, totals: Totals, key: jax.Array, frozen: Any) -> Loss:
        del key
        params = freeze_router(params) if router.freeze else params
        scores, routing = batch_scores(policy, config, params, _rows(batch))
        if live:
            reference = jax.lax.stop_gradient(
                sequence_logprobs(module, config, frozen, batch, loss.ld_alpha)
            )
        else:
            reference = batch["reference_logprobs"].reshape(-1, 2)
        found = pair_loss(scores, reference, batch, totals, loss)
        return add_routing(found, routing, config, router, totals)

    return loss_fn


def pair_loss(
    scores: TokenScores,
    reference: Float[Array, "N 2"],
    batch: Batch,
    totals: Totals,
    loss: PreferenceConfig,
) -> Loss:
    """The terms of `loss` from what the policy says of each target of `_rows(batch)`, and the reference."""
    sums = jax.tree.map(lambda values: completion_sums(values, batch), scores)
    lengths = completion_sums(_rows(batch)["loss_mask"].astype(jnp.float32), batch)
    policy = sums.logprobs
    if loss.ld_alpha is not None:
        weights = completion_weights(batch["loss_mask"], loss.ld_alpha)
        policy = completion_sums(scores.logprobs * weights, batch)
    pairs = Pairs(policy=policy, reference=reference, lengths=lengths)
    share = _pair_mask(batch)
    if loss.wpo:
        share = share * pair_weights(sums, lengths)
    here = batch_totals(batch)
    value = jnp.float32(0.0)
    metrics: Sums = {}
    for kind, weight in loss.terms:
        if kind == "sft":
            total, of = -sums.logprobs[:, 0].sum(), "chosen_targets"
        else:
            total, of = (preference_losses(pairs, kind, loss) * share).sum(), "pairs"
        value += weight * total / totals[of]
        if len(loss.terms) > 1:
            metrics[f"loss/{kind}"] = (jax.lax.stop_gradient(total), here[of])
    pairs, sums = jax.lax.stop_gradient((pairs, sums))
    return Loss(
        value=value, metrics=metrics | _dpo_metrics(pairs, sums, _pair_mask(batch), loss.beta)
    )


def _pair_mask(batch: Batch) -> Float[Array, " N"]:
    """1 for each pair there is, 0 where a packed row holds fewer than it could."""
    if "branches" in batch:
        return batch["pair_mask"].reshape(-1).astype(jnp.float32)
    return jnp.ones(batch["loss_mask"].shape[0], jnp.float32)


def pair_weights(sums: TokenScores, lengths: Float[Array, "N 2"]) -> Float[Array, " N"]:
    """How likely the policy is to write a pair, measured a token by what it would write itself (WPO).

    sums: of each completion, [N,2].
    """
    means = (sums.logprobs - sums.log_collision) / jnp.maximum(lengths, 1.0)
    return jax.lax.stop_gradient(jnp.exp(means.sum(-1)))


def _dpo_metrics(pairs: Pairs, sums: TokenScores, mask: jax.Array, beta: float) -> Sums:
    """Under the names TRL logs them by: means over pairs, and over the targets of completions."""
    targets = pairs.lengths.sum(0)
    per_pair = {
        name: ((values * mask).sum(), mask.sum())
        for name, values in preference_metrics(pairs, beta).items()
    }
    return per_pair | {
        "entropy": (sums.entropy.sum(), targets.sum()),
        "mean_token_accuracy": (sums.top1[:, 0].sum(), targets[0]),
        "logits/chosen": (sums.mean_logits[:, 0].sum(), targets[0]),
        "logits/rejected": (sums.mean_logits[:, 1].sum(), targets[1]),
    }


def reference_pass(
    module: nn.Module, config: ModelConfig, ld_alpha: float | None = None
) -> Callable[[Params, Any], Float[Array, "B 2"]]:
    """Compiled function (params, batch) -> log-probabilities of the reference, float32 [B,2]."""
    return jax.jit(lambda params, batch: sequence_logprobs(module, config, params, batch, ld_alpha))
