"""Preference losses beyond the recorded oracle: their parts written out, and what configurations refuse."""

import dataclasses
import math
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.adapters import LoRAConfig
from configs.checks import ConfigError
from configs.losses import PreferenceConfig, PreferenceLoss
from configs.schema import BatchConfig, DataConfig, DPOConfig
from gemma4_jax.logprobs import TokenScores
from train.losses import batch_totals, completion_weights, pair_loss
from train.preference import LOSSES, Pairs, preference_losses

PAIRS, TOKENS = 5, 9


def batch():
    """Scores, reference and mask of random pairs with prompts of unequal lengths before the completions."""
    rng = np.random.default_rng(0)
    mask = np.zeros((PAIRS, 2, TOKENS), bool)
    for row in mask.reshape(-1, TOKENS):
        start = rng.integers(0, 4)
        row[start : start + rng.integers(1, 6)] = True

    def numbers(low, high):
        return jnp.asarray(np.where(mask, rng.uniform(low, high, mask.shape), 0), jnp.float32)

    scores = TokenScores(
        logprobs=numbers(-3, -0.1),
        normalizers=numbers(1, 2),
        mean_logits=numbers(-1, 1),
        entropy=numbers(0, 3),
        log_collision=numbers(-2, -0.5),
        top1=numbers(0, 1).round(),
    )
    reference = jnp.asarray(rng.normal(-6, 1, (PAIRS, 2)), jnp.float32)
    return scores, reference, jnp.asarray(mask)


def value(loss, part=slice(None), given=None):
    scores, reference, mask = batch() if given is None else given
    scores, reference, here = jax.tree.map(lambda x: x[part], (scores, reference, mask))
    rows = jax.tree.map(lambda x: x.reshape(-1, TOKENS), scores)
    names = ("tokens", "targets", "segment_ids", "positions")
    cut = dict.fromkeys(names, jnp.ones_like(here, jnp.int32)) | {"loss_mask": here}
    return pair_loss(
        rows,
        reference,
        cut,
        batch_totals({"loss_mask": mask, "segment_ids": mask.astype(jnp.int32)}),
        loss,
    )


def test_the_configuration_knows_the_losses_there_are():
    assert set(get_args(PreferenceLoss)) == {*LOSSES, "sft"}


def test_a_mix_is_the_weighted_sum_of_its_terms():
    mix = PreferenceConfig(types=("sigmoid", "bco_pair", "sft"), weights=(0.8, 0.2, 1.5))
    parts = [float(value(PreferenceConfig(types=(kind,))).value) for kind in mix.types]
    whole = value(mix)
    assert float(whole.value) == pytest.approx(np.dot(mix.weights, parts), rel=1e-5)
    for kind, part in zip(mix.types, parts, strict=True):
        total, weight = whole.metrics[f"loss/{kind}"]
        assert float(total / weight) == pytest.approx(part, rel=1e-5)


def test_parts_of_a_batch_add_up_though_terms_average_over_different_things():
    mix = PreferenceConfig(types=("sigmoid", "ipo", "sft"), wpo=True, ld_alpha=0.3)
    parts = [float(value(mix, slice(i, i + 1)).value) for i in range(PAIRS)]
    assert sum(parts) == pytest.approx(float(value(mix).value), rel=1e-5)


def test_tokens_beyond_the_shorter_completion_count_less():
    mask = jnp.asarray([[[0, 1, 1, 0, 1, 1], [0, 0, 1, 1, 0, 0]]], bool)
    wanted = [[[0, 1, 1, 0, 0.25, 0.25], [0, 0, 1, 1, 0, 0]]]
    np.testing.assert_array_equal(completion_weights(mask, 0.25), wanted[0])
    np.testing.assert_array_equal(completion_weights(mask, None), mask[0].astype(jnp.float32))
    scores, _, mask = batch()
    found = value(PreferenceConfig(ld_alpha=0.25)).metrics["logps/chosen"]
    wanted = sum(
        float(
            (np.asarray(s)[m[0]] * np.where(np.arange(m[0].sum()) < m.sum(-1).min(), 1, 0.25)).sum()
        )
        for s, m in zip(scores.logprobs[:, 0], np.asarray(mask), strict=True)
    )
    assert float(found[0]) == pytest.approx(wanted, rel=1e-5)


def test_wpo_weighs_pairs_by_the_policys_own_probability():
    scores, reference, mask = batch()
    losses = preference_losses(
        Pairs(policy=scores.logprobs.sum(-1), reference=reference, lengths=mask.sum(-1) * 1.0),
        "sigmoid",
        PreferenceConfig(),
    )
    weights = [
        math.exp(
            sum(
                float(np.mean((s - c)[m]))
                for s, c, m in zip(*map(np.asarray, (lp, lc, mk)), strict=True)
            )
        )
        for lp, lc, mk in zip(scores.logprobs, scores.log_collision, mask, strict=True)
    ]
    wanted = float(np.mean(np.asarray(losses) * weights))
    assert float(value(PreferenceConfig(wpo=True)).value) == pytest.approx(wanted, rel=1e-5)

    # The weight itself is no way to a lower loss.
    def of(logprobs, loss):
        given = (dataclasses.replace(scores, logprobs=logprobs), reference, mask)
        return value(loss, given=given).value

    plain = jax.grad(of)(scores.logprobs, PreferenceConfig())
    weighted = jax.grad(of)(scores.logprobs, PreferenceConfig(wpo=True))
    np.testing.assert_allclose(
        weighted, plain * np.asarray(weights)[:, None, None], rtol=1e-4, atol=1e-8
    )


def test_sequences_far_from_the_reference_stay_finite():
    far = jnp.asarray([[-4000.0, -10.0], [-10.0, -4000.0]])
    pairs = Pairs(policy=far, reference=far[::-1], lengths=jnp.full((2, 2), 50.0))
    bounded = {*LOSSES} - {"discopop"}  # its exponential of the margin is what it is

    def total(pairs, kind):
        config = PreferenceConfig(types=(kind,), label_smoothing=0.1)
        return preference_losses(pairs, kind, config).sum()

    for kind in sorted(bounded):
        found, grads = jax.value_and_grad(total)(pairs, kind)
        assert np.isfinite(found) and np.isfinite(grads.policy).all(), kind


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"types": ()}, "at least one loss"),
        ({"types": ("sft", "sft")}, "without repeats"),
        ({"weights": (1.0, 2.0)}, "one number for each of loss.types = sigmoid"),
        ({"weights": (0.0,)}, "not all 0"),
        ({"types": ("exo_pair",)}, "above 0 for exo_pair"),
        ({"label_smoothing": 0.5}, "below 0.5"),
        ({"types": ("apo_zero",), "f_divergence": "forward_kl"}, "reverse_kl with apo_zero"),
        ({"types": ("aot",), "wpo": True}, "False with aot"),
        ({"ld_alpha": 1.5}, "between 0 and 1"),
        ({"sync_every": 5, "reference": "precomputed"}, "live or auto"),
        ({"discopop_tau": 0.0}, "above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint) as error:
        PreferenceConfig(**settings)
    assert "\n" not in str(error.value)


def test_ranks_of_a_batch_are_not_those_of_its_parts():
    with pytest.raises(ConfigError, match="aot ranks the pairs of a whole batch"):
        DPOConfig(loss=PreferenceConfig(types=("aot",)), batch=BatchConfig(rows=4, accumulation=2))


def test_adapters_have_no_reference_that_moves():
    with pytest.raises(ConfigError, match="the reference is the model without them"):
        DPOConfig(loss=PreferenceConfig(sync_every=2), lora=LoRAConfig(rank=4))


def test_packing_refuses_what_needs_rows_of_their_own():
    for loss in (PreferenceConfig(ld_alpha=0.5), PreferenceConfig(types=("aot",))):
        with pytest.raises(ConfigError, match="needs pairs in rows of their own"):
            DPOConfig(loss=loss, data=DataConfig(packing=True))
