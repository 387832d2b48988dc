"""What `make demo-real` trains: the model's twin, and the configurations of both runs.

Sizes were chosen by measuring on two CPU cores (docs/demo.md). Not here: the data (rules.py), the
order of events (demo.py).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
from examples.ruff_rules.fixes import Fix
from gemma4_jax.config import FULL, SLIDING, ModelConfig, RopeConfig
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
    """E2B in small: per-layer embeddings, sliding and full layers, shared K/V, double-wide MLPs."""
    return ModelConfig(
        name="demo-real",
        vocab_size=vocab_size,
        d_model=128,
        num_heads=4,
        num_kv_heads=1,
        head_dim=32,
        d_ff=256,
        layer_types=(SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL),
        window=64,
        num_global_kv_heads=1,
        global_head_dim=64,
        num_kv_shared_layers=3,
        double_wide_mlp=True,
        per_layer_input_width=16,
        per_layer_vocab_size=vocab_size,
        rope_full=RopeConfig(theta=100_000.0, proportion=0.25),
        max_position=512,
    )


def sft_config(recipe: Recipe, folder: Path) -> SFTConfig:
    """From random weights, on what the training rules say and on code that follows them."""
    return SFTConfig(
        mesh=MeshConfig(fsdp=1),
        seed=recipe.seed,
        model=ModelSource(
            architecture=str(folder / "model.json"), tokenizer=str(folder / "tokenizer.model")
        ),
        data=DataConfig(
            path=str(folder / "sft.jsonl"),
            max_length=recipe.sft_length,
            overlong="truncate",
            packing=True,
        ),
        batch=BatchConfig(rows=recipe.sft_batch),
        optim=OptimConfig(peak_lr=recipe.sft_lr, warmup_fraction=0.05, b2=0.95, weight_decay=0.1),
        run=RunConfig(
            workdir=str(folder / "sft"),
            epochs=recipe.sft_epochs,
            log_every=25,
            save_every=125,
            keep=1,
            samples=0,
            export_huggingface=True,
        ),
    )


def dpo_config(recipe: Recipe, folder: Path) -> DPOConfig:
    """From the SFT result: code that follows each training rule against code that does not."""
    return DPOConfig(
        mesh=MeshConfig(fsdp=1),
        seed=recipe.seed,
        model=ModelSource(path=str(folder / "sft" / "huggingface")),
        data=DataConfig(
            path=str(folder / "pairs.jsonl"),
            max_length=recipe.max_length,
            overlong="drop",
            validation=(str(held_out_file(folder, "code")),),
        ),
        batch=BatchConfig(rows=recipe.dpo_batch),
        optim=OptimConfig(peak_lr=recipe.dpo_lr, schedule="linear", warmup_fraction=0.1, b2=0.95),
        run=RunConfig(
            workdir=str(folder / "dpo"),
            epochs=recipe.dpo_epochs,
            log_every=10,
            save_every=recipe.dpo_measure_every,
            keep=1,
            samples=0,
            export_huggingface=True,
        ),
        loss=PreferenceConfig(beta=recipe.beta),
    )
