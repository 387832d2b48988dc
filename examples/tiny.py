"""What the demos train and how: a tiny twin of E2B, SFT of it from random weights, DPO of the result.

Here: what their recipes share. Not here: sizes (recipe.py of each demo), command lines (running.py).
"""

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
from gemma4_jax.config import FULL, SLIDING, LayerKind, ModelConfig, RopeConfig


def twin(
    vocab_size: int,
    *,
    name: str = "demo",
    layer_types: tuple[LayerKind, ...] = (SLIDING, FULL, SLIDING, FULL),
    window: int = 32,
) -> ModelConfig:
    """E2B in small: per-layer embeddings, sliding and full layers, double-wide MLPs; half of the layers share
    the K/V of others."""
    return ModelConfig(
        name=name,
        vocab_size=vocab_size,
        d_model=128,
        num_heads=4,
        num_kv_heads=1,
        head_dim=32,
        d_ff=256,
        layer_types=layer_types,
        window=window,
        num_global_kv_heads=1,
        global_head_dim=64,
        num_kv_shared_layers=len(layer_types) // 2,
        double_wide_mlp=True,
        per_layer_input_width=16,
        per_layer_vocab_size=vocab_size,
        rope_full=RopeConfig(theta=100_000.0, proportion=0.25),
        max_position=512,
    )


def sft_from_nothing(
    folder: Path, *, seed: int, length: int, rows: int, peak_lr: float, **run: Any
) -> SFTConfig:
    """From random weights of `model.json` on `sft.jsonl`, both in `folder`, to `sft/huggingface` there.

    length, rows: of a step's packed sequences. run: how long, and how often it logs and saves.
    """
    return SFTConfig(
        mesh=MeshConfig(fsdp=1),
        seed=seed,
        model=ModelSource(
            architecture=str(folder / "model.json"), tokenizer=str(folder / "tokenizer.model")
        ),
        data=DataConfig(path=str(folder / "sft.jsonl"), max_length=length, packing=True),
        batch=BatchConfig(rows=rows),
        optim=OptimConfig(peak_lr=peak_lr, warmup_fraction=0.05, b2=0.95),
        run=RunConfig(
            workdir=str(folder / "sft"), keep=1, samples=0, export_huggingface=True, **run
        ),
    )


def after_sft(folder: Path) -> ModelSource:
    """What `sft_from_nothing` leaves."""
    return ModelSource(path=str(folder / "sft" / "huggingface"))


def preference_optim(peak_lr: float) -> OptimConfig:
    """Of DPO."""
    return OptimConfig(peak_lr=peak_lr, schedule="linear", warmup_fraction=0.1, b2=0.95)


def dpo_after_sft(
    folder: Path,
    *,
    seed: int,
    length: int,
    rows: int,
    peak_lr: float,
    beta: float,
    **run: Any,
) -> DPOConfig:
    """From the SFT result on `pairs.jsonl` in `folder`, to `dpo/huggingface` there.

    length: longest prompt and answer, in tokens. rows: pairs a step. run: as of `sft_from_nothing`.
    """
    return DPOConfig(
        mesh=MeshConfig(fsdp=1),
        seed=seed,
        model=after_sft(folder),
        data=DataConfig(path=str(folder / "pairs.jsonl"), max_length=length),
        batch=BatchConfig(rows=rows),
        optim=preference_optim(peak_lr),
        run=RunConfig(
            workdir=str(folder / "dpo"), keep=1, samples=0, export_huggingface=True, **run
        ),
        loss=PreferenceConfig(beta=beta),
    )
