"""What the demo trains, on how much, for how long: the model's twin and the configurations of both runs.

Sizes were chosen by measuring on two CPU cores (docs/demo.md). Not here: the problems (problems.py),
the order of events (demo.py).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from configs.losses import PreferenceConfig
from configs.mesh import MeshConfig
from configs.schema import (
    BatchConfig,
    DataConfig,
    DPOConfig,
    ModelSource,
    OptimConfig,
    RunConfig,
    SFTConfig,
)
from examples.arithmetic.problems import problems
from gemma4_jax.config import FULL, SLIDING, ModelConfig, RopeConfig
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


def twin(vocab_size: int) -> ModelConfig:
    """E2B in small: per-layer embeddings, sliding and full layers, shared K/V, double-wide MLPs."""
    return ModelConfig(
        name="demo",
        vocab_size=vocab_size,
        d_model=128,
        num_heads=4,
        num_kv_heads=1,
        head_dim=32,
        d_ff=256,
        layer_types=(SLIDING, FULL, SLIDING, FULL),
        window=32,
        num_global_kv_heads=1,
        global_head_dim=64,
        num_kv_shared_layers=2,
        double_wide_mlp=True,
        per_layer_input_width=16,
        per_layer_vocab_size=vocab_size,
        rope_full=RopeConfig(theta=100_000.0, proportion=0.25),
        max_position=512,
    )


def sft_config(recipe: Recipe, folder: Path) -> SFTConfig:
    """From random weights, on the worked problems in `folder`."""
    return SFTConfig(
        mesh=MeshConfig(fsdp=1),
        seed=recipe.seed,
        model=ModelSource(
            architecture=str(folder / "model.json"), tokenizer=str(folder / "tokenizer.model")
        ),
        data=DataConfig(path=str(folder / "sft.jsonl"), max_length=recipe.sft_length, packing=True),
        batch=BatchConfig(rows=recipe.sft_batch),
        optim=OptimConfig(peak_lr=recipe.sft_lr, warmup_fraction=0.05, b2=0.95),
        run=RunConfig(
            workdir=str(folder / "sft"),
            steps=recipe.sft_steps,
            log_every=max(1, recipe.sft_steps // 20),
            save_every=max(1, recipe.sft_steps // 4),
            keep=1,
            samples=0,
            export_huggingface=True,
        ),
    )


def dpo_config(recipe: Recipe, folder: Path, pairs: int) -> DPOConfig:
    """From the SFT result, on `pairs` pairs of its own answers."""
    steps = max(1, round(recipe.dpo_epochs * pairs / recipe.dpo_batch))
    return DPOConfig(
        mesh=MeshConfig(fsdp=1),
        seed=recipe.seed,
        model=ModelSource(path=str(folder / "sft" / "huggingface")),
        data=DataConfig(path=str(folder / "pairs.jsonl"), max_length=MAX_LENGTH + MAX_NEW_TOKENS),
        batch=BatchConfig(rows=recipe.dpo_batch),
        optim=OptimConfig(peak_lr=recipe.dpo_lr, schedule="linear", warmup_fraction=0.1, b2=0.95),
        run=RunConfig(
            workdir=str(folder / "dpo"),
            steps=steps,
            log_every=max(1, steps // 15),
            save_every=max(1, steps),
            keep=1,
            samples=0,
            export_huggingface=True,
        ),
        loss=PreferenceConfig(beta=recipe.beta),
    )
