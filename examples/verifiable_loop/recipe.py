"""The sizes of the loop's demo, and the two runs they make. Sizes were chosen by measuring
(docs/verifiable_preferences.md). Not here: the data (requests.py, slips.py), the order of events (demo.py).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.losses import PreferenceConfig
from configs.mesh import MeshConfig
from configs.schema import BatchConfig, DataConfig, RunConfig, SFTConfig
from configs.verifiable import PairsConfig, RLAIFConfig, RoundsConfig, SamplingConfig
from examples.tiny import after_sft, preference_optim, sft_from_nothing, twin
from examples.verifiable_loop.slips import demonstrations
from gemma4_jax.hf_config import config_to_hf

#: Longest prompt and answer together, in tokens, and length of the rows that pairs are packed into.
MAX_LENGTH = 384

#: Names of the held-out files.
SETS = ("arithmetic", "tools")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Sizes of a demo.

    sft_rows: demonstrations, a share of `slips` of them wrong; every `calls_every`-th is a call, the others are
    word problems: calls are learnt soon, sums are not. held_out: prompts of each kind that accuracy is measured
    on, each answered `held_out_samples` times. problems, requests: prompts of a round for training, answered
    `samples` times. dpo_steps: of every round, about once over its pairs: rounds of as many steps compile one
    program. dpo_rows: packed rows of MAX_LENGTH a step. chosen_weight: of the likelihood of chosen answers in
    the loss, beside DPO (RPO): without it sums are unlearnt with the slips.
    """

    seed: int = 0
    vocab_size: int = 512
    slips: float = 0.5
    sft_rows: int = 16_000
    calls_every: int = 5
    sft_batch: int = 4
    sft_length: int = 256
    sft_steps: int = 1500
    sft_lr: float = 3e-3
    held_out: int = 300
    held_out_samples: int = 3
    rounds: int = 2
    problems: int = 400
    requests: int = 100
    samples: int = 4
    dpo_rows: int = 4
    dpo_steps: int = 36
    dpo_lr: float = 3e-4
    beta: float = 0.1
    chosen_weight: float = 2.0

    def fingerprint(self) -> dict[str, Any]:
        """Everything that the results of a demo depend on, as JSON values."""
        rows = list(demonstrations(100, self.slips, self.seed, self.calls_every))
        digest = hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest()
        model = config_to_hf(twin(self.vocab_size))
        return {"demo": "verifiable loop", **asdict(self), "rows": digest, "model": model}


def sft_config(recipe: Recipe, folder: Path) -> SFTConfig:
    """From random weights, on demonstrations with slips."""
    return sft_from_nothing(
        folder,
        seed=recipe.seed,
        length=recipe.sft_length,
        rows=recipe.sft_batch,
        peak_lr=recipe.sft_lr,
        steps=recipe.sft_steps,
        log_every=max(1, recipe.sft_steps // 12),
        save_every=max(1, recipe.sft_steps // 4),
    )


def loop_config(recipe: Recipe, folder: Path) -> RLAIFConfig:
    """Rounds from the SFT result. Nothing is filtered in sampling, so that drift estimates the KL."""
    return RLAIFConfig(
        mesh=MeshConfig(fsdp=1),
        seed=recipe.seed,
        model=after_sft(folder),
        data=DataConfig(
            path=str(folder / "prompts.jsonl"),
            validation=tuple(str(folder / f"{name}.jsonl") for name in SETS),
            max_length=MAX_LENGTH,
            packing=True,
        ),
        batch=BatchConfig(rows=recipe.dpo_rows),
        optim=preference_optim(recipe.dpo_lr),
        run=RunConfig(
            workdir=str(folder / "loop"), steps=recipe.dpo_steps, log_every=6, keep=1, samples=0
        ),
        loss=PreferenceConfig(
            beta=recipe.beta, types=("sigmoid", "sft"), weights=(1.0, recipe.chosen_weight)
        ),
        sampling=SamplingConfig(
            samples=recipe.samples,
            evaluation_samples=recipe.held_out_samples,
            top_k=0,
            top_p=1.0,
            max_new_tokens=64,
            max_tokens=8192,
        ),
        pairs=PairsConfig(),
        rounds=RoundsConfig(count=recipe.rounds, prompts=recipe.problems + recipe.requests),
    )
