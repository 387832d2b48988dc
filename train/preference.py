"""The preference losses: numbers per completion -> a loss per pair.

Pure functions of summed log-probabilities, under the names and with the conventions of TRL 1.16, which
tests compare them with. What is averaged over tokens or sorted over the batch says so. Not here: where
log-probabilities come from and the supervised term "sft" (losses.py).

Letters: B pairs; the second axis is (chosen, rejected). r = policy minus reference log-probability, d = r of
the chosen minus r of the rejected, b = beta, e = label_smoothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from configs.losses import PreferenceConfig

# exp(80) is the last power of ten decades that float32 holds with room for a product.
_LARGEST_EXPONENT = 80.0


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What a preference loss reads."""

    policy: Array  # float32 [B, 2], summed log-probabilities of the completions
    reference: Array  # float32 [B, 2], the same under the reference
    lengths: Array  # float32 [B, 2], tokens of the completions

    @property
    def ratios(self) -> Float[Array, "B 2"]:
        """r, the log-ratios to the reference."""
        return self.policy - self.reference


def divergence_scores(ratios: Float[Array, "B 2"], config: PreferenceConfig) -> Float[Array, "B 2"]:
    """f'(e^r) of the chosen divergence f, up to a constant; r itself for the reverse KL (arXiv 2309.16240)."""
    kind, coefficient = config.f_divergence, config.f_alpha
    if kind == "forward_kl":
        return 1 - jnp.exp(-ratios)
    if kind == "js_divergence":
        return math.log(2) + jax.nn.log_sigmoid(ratios)
    if kind == "alpha_divergence" and abs(coefficient - 1) > 1e-6:
        exponent = jnp.minimum((coefficient - 1) * ratios, _LARGEST_EXPONENT)
        return (jnp.exp(exponent) - 1) / (coefficient - 1)
    return ratios


def preference_losses(pairs: Pairs, kind: str, config: PreferenceConfig) -> Float[Array, " B"]:
    """Loss of each pair; `kind` is one of `LOSSES`. aot kinds pair what the batch's ranks pair."""
    return LOSSES[kind](pairs, config)


def _delta(pairs: Pairs, config: PreferenceConfig) -> Array:
    """b d, under the divergence that was asked for."""
    scores = divergence_scores(pairs.ratios, config)
    return config.beta * (scores[:, 0] - scores[:, 1])


def _mean_delta(pairs: Pairs, config: PreferenceConfig) -> Array:
    """Difference of scores per token, without beta."""
    scores = divergence_scores(pairs.ratios, config) / jnp.maximum(pairs.lengths, 1.0)
    return scores[:, 0] - scores[:, 1]


def _smoothed(logits: Array, smoothing: float) -> Array:
    """-log sigmoid of the logits, labels flipped with probability `smoothing`."""
    right, wrong = -jax.nn.log_sigmoid(logits), -jax.nn.log_sigmoid(-logits)
    return (1 - smoothing) * right + smoothing * wrong


def sigmoid(pairs: Pairs, config: PreferenceConfig) -> Array:
    """-log sigmoid(b d). DPO, arXiv 2305.18290, equation 7."""
    return -jax.nn.log_sigmoid(_delta(pairs, config))


def sigmoid_norm(pairs: Pairs, config: PreferenceConfig) -> Array:
    """`sigmoid` of the difference per token: length does not pay."""
    return -jax.nn.log_sigmoid(config.beta * _mean_delta(pairs, config))


def hinge(pairs: Pairs, config: PreferenceConfig) -> Array:
    """max(0, 1 - b d). SLiC, arXiv 2305.10425."""
    return jax.nn.relu(1 - _delta(pairs, config))


def ipo(pairs: Pairs, config: PreferenceConfig) -> Array:
    """(d per token - 1 / (2 b))^2. arXiv 2310.12036, equation 17; averaged over tokens as its authors do."""
    return jnp.square(_mean_delta(pairs, config) - 1 / (2 * config.beta))


def exo_pair(pairs: Pairs, config: PreferenceConfig) -> Array:
    """KL from (sigmoid(b d), sigmoid(-b d)) to (1 - e, e). EXO, arXiv 2402.00856, equation 16; needs e > 0."""
    logits, e = _delta(pairs, config), config.label_smoothing
    log_p, log_q = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return jnp.exp(log_p) * (log_p - math.log1p(-e)) + jnp.exp(log_q) * (log_q - math.log(e))


def nca_pair(pairs: Pairs, config: PreferenceConfig) -> Array:
    """-log sigmoid(b r_c) - (log sigmoid(-b r_c) + log sigmoid(-b r_r)) / 2. NCA, arXiv 2402.05369."""
    rewards = config.beta * pairs.ratios
    against = jax.nn.log_sigmoid(-rewards).sum(-1)
    return -jax.nn.log_sigmoid(rewards[:, 0]) - 0.5 * against


def robust(pairs: Pairs, config: PreferenceConfig) -> Array:
    """`sigmoid`, unbiased when a share e < 1/2 of the labels is flipped. arXiv 2403.00409."""
    logits, e = _delta(pairs, config), config.label_smoothing
    clean, flipped = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return (-(1 - e) * clean + e * flipped) / (1 - 2 * e)


def bco_pair(pairs: Pairs, config: PreferenceConfig) -> Array:
    """-log sigmoid(b r_c) - log sigmoid(-b r_r). BCO without its running mean, arXiv 2404.04656."""
    rewards = config.beta * pairs.ratios
    return -jax.nn.log_sigmoid(rewards[:, 0]) - jax.nn.log_sigmoid(-rewards[:, 1])


def sppo_hard(pairs: Pairs, config: PreferenceConfig) -> Array:
    """(r_c - 1 / (2 b))^2 + (r_r + 1 / (2 b))^2. SPPO with certain wins, arXiv 2405.00675, equation 4.7."""
    goal = 0.5 / config.beta
    return jnp.square(pairs.ratios[:, 0] - goal) + jnp.square(pairs.ratios[:, 1] + goal)


def aot(pairs: Pairs, config: PreferenceConfig) -> Array:
    """Smoothed logistic of the sorted policy margins minus the sorted reference margins. arXiv 2406.05882."""
    policy = jnp.sort(pairs.policy[:, 0] - pairs.policy[:, 1])
    reference = jnp.sort(pairs.reference[:, 0] - pairs.reference[:, 1])
    return _smoothed(config.beta * (policy - reference), config.label_smoothing)


def aot_unpaired(pairs: Pairs, config: PreferenceConfig) -> Array:
    """Smoothed logistic of the sorted r of the chosen minus the sorted r of the rejected. arXiv 2406.05882."""
    ordered = jnp.sort(pairs.ratios, axis=0)
    return _smoothed(config.beta * (ordered[:, 0] - ordered[:, 1]), config.label_smoothing)


def apo_zero(pairs: Pairs, config: PreferenceConfig) -> Array:
    """1 - sigmoid(b r_c) + sigmoid(b r_r): chosen up, rejected down. APO, arXiv 2408.06266, equation 7."""
    rewards = config.beta * pairs.ratios
    return 1 - jax.nn.sigmoid(rewards[:, 0]) + jax.nn.sigmoid(rewards[:, 1])


def apo_down(pairs: Pairs, config: PreferenceConfig) -> Array:
    """sigmoid(b r_c) + 1 - sigmoid(b d): both down, the rejected more. APO, arXiv 2408.06266, equation 8."""
    rewards = config.beta * pairs.ratios
    return jax.nn.sigmoid(rewards[:, 0]) + 1 - jax.nn.sigmoid(rewards[:, 0] - rewards[:, 1])


def discopop(pairs: Pairs, config: PreferenceConfig) -> Array:
    """Logistic and exponential loss, blended by sigmoid(b d / tau). DiscoPOP, arXiv 2406.08414, equation 5."""
    logits = _delta(pairs, config)
    blend = jax.nn.sigmoid(logits / config.discopop_tau)
    return (1 - blend) * -jax.nn.log_sigmoid(logits) + blend * jnp.exp(-logits)


LOSSES: dict[str, Callable[[Pairs, PreferenceConfig], Float[Array, " B"]]] = {
    loss.__name__: loss
    for loss in (
        *(sigmoid, hinge, ipo, exo_pair, nca_pair, robust, bco_pair, sppo_hard),
        *(aot, aot_unpaired, apo_zero, apo_down, discopop, sigmoid_norm),
    )
}


def preference_metrics(pairs: Pairs, beta: float) -> dict[str, Float[Array, " B"]]:
    """Implicit rewards b r and log-probabilities of each pair, under the names TRL logs them by."""
    rewards = beta * pairs.ratios
    margins = rewards[:, 0] - rewards[:, 1]
    return {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "rewards/margins": margins,
        "rewards/accuracies": (margins > 0).astype(jnp.float32),
        "logps/chosen": pairs.policy[:, 0],
        "logps/rejected": pairs.policy[:, 1],
    }
