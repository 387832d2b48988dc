"""What a run of verifiable preferences is: rounds of sampling, verifying, pairing, DPO and measuring.

Here: the types, checked where they are set. Not here: DPO's own settings, which keep their meaning for the DPO
of every round (schema.py), presets (rlaif.py), what the values do (train/verifiable/).
"""

import dataclasses
from typing import Literal

from configs.checks import ConfigError, check
from configs.schema import DPOConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the policy is asked, in training and in measuring."""

    samples: int = 8
    """Answers to each prompt of a round."""
    temperature: float = 1.0
    """Of the answers that pairs are made of; above 0, or all answers to a prompt are one."""
    top_k: int = 64
    """Only so many of the likeliest tokens are drawn from; 0: all."""
    top_p: float = 0.95
    """Only the likeliest tokens that make up this share are drawn from; 1: all."""
    max_new_tokens: int = 1024
    """Longest answer, thought included; longer ones are cut, and no pair has them."""
    thinking: bool = False
    """Ask for a thought before the answer; a row's own `thinking` goes before."""
    evaluation_temperature: float = 1.0
    """Of answers to held-out prompts; 0: greedy."""
    evaluation_samples: int = 1
    """Answers to each held-out prompt; several tell rounds apart that differ by less."""
    max_slots: int = 32
    """Answers that are written together."""
    max_tokens: int = 65_536
    """Positions that all of them may hold together."""

    def __post_init__(self) -> None:
        least_of = {
            "samples": 2,
            "evaluation_samples": 1,
            "max_new_tokens": 1,
            "max_slots": 1,
            "top_k": 0,
        }
        for name, least in least_of.items():
            value = getattr(self, name)
            check(value >= least, f"sampling.{name}", value, f"at least {least}")
        check(
            self.max_slots & (self.max_slots - 1) == 0,
            "sampling.max_slots",
            self.max_slots,
            "a power of two",
        )
        check(self.max_tokens >= 1024, "sampling.max_tokens", self.max_tokens, "at least 1024")
        check(
            0 < self.temperature < float("inf"),
            "sampling.temperature",
            self.temperature,
            "above 0: greedy answers to one prompt are all the same",
        )
        check(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "above 0 and at most 1")
        check(
            0 <= self.evaluation_temperature < float("inf"),
            "sampling.evaluation_temperature",
            self.evaluation_temperature,
            "at least 0 (0: greedy)",
        )
        check(
            self.evaluation_samples == 1 or self.evaluation_temperature > 0,
            "sampling.evaluation_samples",
            self.evaluation_samples,
            "1 with sampling.evaluation_temperature 0: greedy answers to one prompt are all the same",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """How verifiers that run programs run them."""

    seconds: float = 10.0
    """Longest that one program may take, for one answer."""
    workers: int = 2
    """Answers that are verified at once."""
    isolation: Literal["bubblewrap", "weak"] = "bubblewrap"
    """How programs are kept in (docs/sandbox.md)."""

    def __post_init__(self) -> None:
        check(0 < self.seconds < float("inf"), "verify.seconds", self.seconds, "above 0 and finite")
        check(self.workers >= 1, "verify.workers", self.workers, "at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairsConfig:
    """Which right answers are set against which wrong ones."""

    per_prompt: int = 2
    """Most pairs of one prompt; no answer is in two."""
    length_ratio: float = 2.0
    """Longest of two answers of a pair over the shortest, in tokens."""
    likeness: float = 0.9
    """Answers that share more of their 5-character pieces (Jaccard) are one answer, and make no pair."""

    def __post_init__(self) -> None:
        check(self.per_prompt >= 1, "pairs.per_prompt", self.per_prompt, "at least 1")
        check(self.length_ratio >= 1, "pairs.length_ratio", self.length_ratio, "at least 1")
        check(0 < self.likeness <= 1, "pairs.likeness", self.likeness, "above 0 and at most 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """How often, and from what."""

    count: int = 2
    """Rounds; a finished run goes on if this is raised."""
    prompts: int = 0
    """Prompts of a round, taken in turn from the file; 0: all of them in every round."""
    reference: Literal["round", "start"] = "round"
    """DPO's reference: the policy that the round's answers came from, or the model of the first round."""

    def __post_init__(self) -> None:
        check(self.count >= 1, "rounds.count", self.count, "at least 1")
        check(self.prompts >= 0, "rounds.prompts", self.prompts, "at least 0 (0: all)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLAIFConfig(DPOConfig):
    """Rounds of DPO on answers that a program verified.

    The settings of DPO are those of the DPO of every round, but for these: data.path is a file of prompts with
    verifiers, data.validation are files of such prompts held out, and run.workdir holds all rounds.
    """

    sampling: SamplingConfig = SamplingConfig()
    verify: VerifyConfig = VerifyConfig()
    pairs: PairsConfig = PairsConfig()
    rounds: RoundsConfig = RoundsConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.mixture:
            raise ConfigError(
                "data.mixture is set; prompts come from one data.path (join the files)"
            )
        if self.loss.reference_path:
            raise ConfigError(
                f"loss.reference_path is {self.loss.reference_path!r}; rounds.reference says here what the "
                "reference is"
            )
        if self.rounds.reference == "start":
            unfit = {"loss.sync_every": self.loss.sync_every, "loss.reference": self.loss.reference}
            for name, usual in (("loss.sync_every", 0), ("loss.reference", "auto")):
                check(
                    unfit[name] == usual,
                    name,
                    unfit[name],
                    f"{usual!r} with rounds.reference start",
                )

    def dpo(self) -> DPOConfig:
        """The settings of DPO alone."""
        names = [field.name for field in dataclasses.fields(DPOConfig)]
        return DPOConfig(**{name: getattr(self, name) for name in names})
