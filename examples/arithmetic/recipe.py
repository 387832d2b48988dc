"""What the demo trains on, how much and for how long: the configurations of both runs.

Sizes were chosen by measuring on two CPU cores (docs/demo.md). Not here: the problems (problems.py),
the order of events (demo.py).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from configs.schema import DPOConfig, SFTConfig
from examples.arithmetic.problems import problems
from examples.tiny import dpo_after_sft, sft_from_nothing, twin
from gemma4_jax.hf_config import config_to_hf

#: Longest question, thought and answer together are 107 tokens.
MAX_LENGTH = 128

#: Tokens of the longest thought and answer, with room to see a model that does not stop.
MAX_NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes of a demo.

    vocab_size: pieces of the vocabulary. sft_rows: worked problems; sft_batch: packed sequences of
    `sft_length` tokens a step. held_out: problems that accuracy is measured on. pair_problems:
    training problems that are answered `samples` times at `temperature` to find pairs; dpo_batch:
    pairs a step, over all pairs `dpo_epochs` times.
    """

    seed: int = 0
    vocab_size: int = 512
    sft_rows: int = 20_000
    sft_batch: int = 4
    sft_length: int = 256
    sft_steps: int = 1000
    sft_lr: float = 3e-3
    held_out: int = 500
    pair_problems: int = 600
    samples: int = 4
    temperature: float = 1.3
    dpo_batch: int = 16
    dpo_epochs: float = 1.0
    dpo_lr: float = 5e-5
    beta: float = 0.1

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the results of a demo depend on, as JSON values."""
        rows = [problem.row() for problem in islice(problems("train", self.seed), 100)]
        digest = hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()
        model = config_to_hf(twin(self.vocab_size))
        return {"demo": "arithmetic", **asdict(self), "problems": digest, "model": model}


def sft_config(recipe: Recipe, folder: Path) -> SFTConfig:
    """From random weights, on the worked problems in `folder`."""
    return sft_from_nothing(
        folder,
        seed=recipe.seed,
        length=recipe.sft_length,
        rows=recipe.sft_batch,
        peak_lr=recipe.sft_lr,
        steps=recipe.sft_steps,
        log_every=max(1, recipe.sft_steps // 20),
        save_every=max(1, recipe.sft_steps // 4),
    )


def dpo_config(recipe: Recipe, folder: Path, pairs: int) -> DPOConfig:
    """From the SFT result, on `pairs` pairs of its own answers."""
    steps = max(1, round(recipe.dpo_epochs * pairs / recipe.dpo_batch))
    return dpo_after_sft(
        folder,
        seed=recipe.seed,
        length=MAX_LENGTH + MAX_NEW_TOKENS,
        rows=recipe.dpo_batch,
        peak_lr=recipe.dpo_lr,
        beta=recipe.beta,
        steps=steps,
        log_every=max(1, steps // 15),
        save_every=max(1, steps),
    )
