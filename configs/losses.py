"""What is minimised: the supervised loss, the preference loss, and what routers add to either.

Not here: the losses themselves (train/losses.py, train/preference.py, train/routing.py).
"""

import dataclasses
from typing import Literal

from configs.checks import check

PreferenceLoss = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
# They read more of a pair than the difference of its scores, or sort the batch.
_REVERSE_KL_ONLY = frozenset(
    {"nca_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down"}
)
SORTING = frozenset({"aot", "aot_unpaired"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """The preference loss: a weighted sum of terms (train/preference.py has their formulas)."""

    types: tuple[PreferenceLoss, ...] = ("sigmoid",)
    """Terms of the loss. MPO: sigmoid bco_pair sft, with weights 0.8 0.2 1; RPO: sigmoid sft."""
    weights: tuple[float, ...] = ()
    """Weight of each term; empty: 1 each."""
    beta: float = 0.1
    """Strength of the pull towards the reference (arXiv 2305.18290, equation 7)."""
    label_smoothing: float = 0.0
    """Share of pairs assumed to be labelled the wrong way round (robust, exo_pair, aot kinds)."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        "reverse_kl"
    )
    """What the pull towards the reference measures (arXiv 2309.16240)."""
    f_alpha: float = 0.5
    """Order of the alpha divergence."""
    discopop_tau: float = 0.05
    """Temperature of discopop's blend."""
    ld_alpha: float | None = None
    """LD-DPO: weight of the tokens beyond the shorter completion's length; None: all count alike."""
    wpo: bool = False
    """Weight each pair by how likely the policy is to write it (arXiv 2406.11827)."""
    reference: Literal["auto", "precomputed", "live"] = "auto"
    """Reference log-probabilities: one pass before training (then freed), or at every step."""
    reference_path: str = ""
    """Folder of the reference, precomputed then; empty: the model that the run starts from."""
    sync_every: int = 0
    """TR-DPO: steps between updates of a live reference towards the policy; 0: never."""
    sync_alpha: float = 0.6
    """TR-DPO: share of the policy in an update of the reference (arXiv 2404.09656)."""

    def __post_init__(self) -> None:
        check(0 < self.beta < float("inf"), "loss.beta", self.beta, "above 0 and finite")
        check(bool(self.types), "loss.types", self.types, "at least one loss")
        check(len(set(self.types)) == len(self.types), "loss.types", self.types, "without repeats")
        check(
            len(self.weights) in (0, len(self.types)),
            "loss.weights",
            self.weights,
            f"empty or one number for each of loss.types = {' '.join(self.types)}",
        )
        check(
            all(0 <= weight < float("inf") for weight in self.weights)
            and any((*self.weights, not self.weights)),
            "loss.weights",
            self.weights,
            "at least 0, finite, and not all 0",
        )
        smoothing = self.label_smoothing
        check(0 <= smoothing < 0.5, "loss.label_smoothing", smoothing, "at least 0, below 0.5")
        if "exo_pair" in self.types:
            check(smoothing > 0, "loss.label_smoothing", smoothing, "above 0 for exo_pair")
        if self.f_divergence != "reverse_kl":
            bad = sorted(_REVERSE_KL_ONLY & set(self.types))
            check(
                not bad,
                "loss.f_divergence",
                self.f_divergence,
                f"reverse_kl with {', '.join(bad)}: only the difference of two scores has other forms",
            )
        check(self.discopop_tau > 0, "loss.discopop_tau", self.discopop_tau, "above 0")
        if self.ld_alpha is not None:
            check(0 <= self.ld_alpha <= 1, "loss.ld_alpha", self.ld_alpha, "between 0 and 1")
        if self.wpo:
            bad = sorted(SORTING & set(self.types))
            check(
                not bad, "loss.wpo", True, f"False with {', '.join(bad)}, which re-pair the batch"
            )
        check(self.sync_every >= 0, "loss.sync_every", self.sync_every, "at least 0 (0: never)")
        check(0 < self.sync_alpha <= 1, "loss.sync_alpha", self.sync_alpha, "above 0, at most 1")
        if self.reference_path:
            bound = "empty with loss.reference live or loss.sync_every: another model is only precomputed"
            ok = self.reference != "live" and not self.sync_every
            check(ok, "loss.reference_path", self.reference_path, bound)
        if self.sync_every:
            check(
                self.reference != "precomputed",
                "loss.reference",
                self.reference,
                "live or auto when loss.sync_every moves the reference",
            )

    @property
    def terms(self) -> tuple[tuple[PreferenceLoss, float], ...]:
        """(loss, weight) of each term."""
        return tuple(zip(self.types, self.weights or (1.0,) * len(self.types), strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SFTLossConfig:
    """The supervised loss: negative log-likelihood per target token, and what may be added to it."""

    label_smoothing: float = 0.0
    """Share of each target's probability that is spread over the whole vocabulary."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser per target token, which keeps logits from drifting."""
    neftune_alpha: float = 0.0
    """Size of the uniform noise on embeddings while training (arXiv 2310.05914; 5 is usual); 0: none."""

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        check(0 <= smoothing < 1, "loss.label_smoothing", smoothing, "at least 0 and below 1")
        for name in ("z_loss", "neftune_alpha"):
            value = getattr(self, name)
            check(0 <= value < float("inf"), f"loss.{name}", value, "at least 0 and finite")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Training of mixture-of-experts routers; without effect on models that have none."""

    balance_loss: float = 0.0
    """Weight of the loss that spreads tokens evenly over experts (1e-2 is usual from scratch)."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser of router logits (1e-3 is usual from scratch)."""
    freeze: bool = False
    """Leave routers as they are: what fine-tuning on little data should do."""
    noise: bool = False
    """Add noise of a learnt size to router logits in training (arXiv 1701.06538); it is not exported."""
    capacity_factor: float | None = None
    """What devices of mesh.expert take from each other, over an even share; the rest is dropped. None: all."""

    def __post_init__(self) -> None:
        for name in ("balance_loss", "z_loss"):
            value = getattr(self, name)
            check(0 <= value < float("inf"), f"router.{name}", value, "at least 0 and finite")
        factor = self.capacity_factor
        check(
            factor is None or 0 < factor < float("inf"),
            "router.capacity_factor",
            factor,
            "above 0 and finite (1.25 is usual), or None: nothing is dropped",
        )
        check(
            not (self.noise and self.freeze),
            "router.noise",
            self.noise,
            "False with router.freeze: the noise is there for routers that learn",
        )
