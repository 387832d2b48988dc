"""What `make demo-real` trains: the sizes, and the configurations of both runs.

Sizes were chosen by measuring on two CPU cores (docs/demo.md). Not here: the data (rules.py), the
order of events (demo.py).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from configs.schema import DPOConfig, SFTConfig
from examples import tiny
from examples.ruff_rules.fixes import Fix
from gemma4_jax.config import FULL, SLIDING, ModelConfig
from gemma4_jax.hf_config import config_to_hf

#: What is measured, by the name of its file.
MEASURES = {"code": "code of unseen files", "rules": "unseen rules"}


def held_out_file(folder: Path, kind: str) -> Path:
    """Where the pairs of one of `MEASURES` are."""
    return folder / f"held_out_{kind}.jsonl"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes of the demo.

    fixes, held_out_fixes: the most examples of real code of one rule. max_length: longest pair in tokens,
    the few above it are left out. sft_batch: packed sequences of `sft_length` tokens a step. dpo_batch:
    pairs a step. dpo_measure_every: steps between measurements on held-out code.
    """

    seed: int = 0
    fixes: int = 12
    held_out_fixes: int = 3
    vocab_size: int = 2048
    sft_length: int = 256
    sft_batch: int = 8
    sft_epochs: float = 3.0
    sft_lr: float = 2e-3
    max_length: int = 192
    dpo_batch: int = 16
    dpo_epochs: float = 1.0
    dpo_lr: float = 1e-4
    beta: float = 0.1
    dpo_measure_every: int = 20

    def fingerprint(self, rules: str, fixes: Sequence[Fix]) -> dict[str, Any]:
        """Everything that the results depend on, as JSON values. rules: ruff's JSON."""
        material = rules + "".join(map(repr, fixes))
        digest = hashlib.blake2b(material.encode(), digest_size=8).hexdigest()
        model = config_to_hf(twin(self.vocab_size))
        return {"demo": "ruff_rules", **asdict(self), "data": digest, "model": model}


def twin(vocab_size: int) -> ModelConfig:
    """The demos' twin of E2B with six layers instead of four, and a wider window."""
    layers = (SLIDING, SLIDING, FULL) * 2
    return tiny.twin(vocab_size, name="demo-real", layer_types=layers, window=64)


def sft_config(recipe: Recipe, folder: Path) -> SFTConfig:
    """From random weights, on what the training rules say and on code that follows them."""
    config = tiny.sft_from_nothing(
        folder,
        seed=recipe.seed,
        length=recipe.sft_length,
        rows=recipe.sft_batch,
        peak_lr=recipe.sft_lr,
        epochs=recipe.sft_epochs,
        log_every=25,
        save_every=125,
    )
    return replace(
        config,
        data=replace(config.data, overlong="truncate"),
        optim=replace(config.optim, weight_decay=0.1),
    )


def dpo_config(recipe: Recipe, folder: Path) -> DPOConfig:
    """From the SFT result: code that follows each training rule against code that does not."""
    config = tiny.dpo_after_sft(
        folder,
        seed=recipe.seed,
        length=recipe.max_length,
        rows=recipe.dpo_batch,
        peak_lr=recipe.dpo_lr,
        beta=recipe.beta,
        epochs=recipe.dpo_epochs,
        log_every=10,
        save_every=recipe.dpo_measure_every,
    )
    held_out = str(held_out_file(folder, "code"))
    return replace(config, data=replace(config.data, overlong="drop", validation=(held_out,)))
