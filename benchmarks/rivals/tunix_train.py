"""Tunix's PeftTrainer and DPOTrainer on the work of benchmarks/train_step.py: one JSON line.

    python -m benchmarks.rivals.tunix_train --config CONFIG_JSON --task sft|dpo --batch 8 --seq 128

Needs google-tunix. float32 on the CPU, AdamW, clipping at 1, no weight decay, no checkpointing of activations,
tokens made beforehand: what is timed is from asking for one batch to asking for the next, with the step done.
The parameters are as many as ours and give the same logits; with experts only while the weights of their norms
are 1, as here, since Tunix 0.1.7 routes by what is normalised for the experts.
Not here: a precomputed reference, which its DPOTrainer does not have.
"""

import argparse
import importlib.metadata
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.gemma4.model import AttentionType, Gemma4, ModelConfig
from tunix.sft import peft_trainer, utils
from tunix.sft.dpo import dpo_trainer

from benchmarks.measure import Timing, emit, peak_rss_mib

WARM_UP = 2  # steps; the first compiles


class _Clock:
    """The batches, one after another; notes when each is asked for and when the last is done."""

    def __init__(self, batches: list[Any], model: nnx.Module) -> None:
        self.batches, self.model = batches, model
        self.marks: list[tuple[float, float]] = []

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self._mark()
            yield batch
        self._mark()

    def _mark(self) -> None:
        jax.block_until_ready(nnx.state(self.model))
        self.marks.append((time.perf_counter(), time.process_time()))


def model_config(hf: dict[str, Any]) -> ModelConfig:
    """Tunix's description of the model of a Hugging Face config.json (text models)."""
    ropes, layers = hf["rope_parameters"], hf["num_hidden_layers"]
    kinds = {
        "sliding_attention": AttentionType.LOCAL_SLIDING,
        "full_attention": AttentionType.GLOBAL,
    }
    return ModelConfig(
        num_layers=layers,
        num_embed=hf["vocab_size"],
        embed_dim=hf["hidden_size"],
        hidden_dim=hf["intermediate_size"],
        num_heads=hf["num_attention_heads"],
        head_dim=hf["head_dim"],
        num_kv_heads=hf["num_key_value_heads"],
        final_logit_softcap=hf["final_logit_softcapping"],
        sliding_window_size=hf["sliding_window"],
        per_layer_input_dim=hf["hidden_size_per_layer_input"],
        num_global_kv_heads=hf["num_global_key_value_heads"],
        global_key_size=hf["global_head_dim"],
        attention_pattern=tuple(kinds[kind] for kind in hf["layer_types"]),
        frac_shared_layers=hf["num_kv_shared_layers"] / layers,
        override_kv_shared_ffw_hidden=(
            2 * hf["intermediate_size"] if hf["use_double_wide_mlp"] else None
        ),
        global_rope_proportion=ropes["full_attention"]["partial_rotary_factor"],
        k_eq_v_global=hf["attention_k_eq_v"],
        local_base_frequency=ropes["sliding_attention"]["rope_theta"],
        global_base_frequency=ropes["full_attention"]["rope_theta"],
        enable_moe=hf["enable_moe_block"],
        num_experts=hf.get("num_experts"),
        num_experts_per_tok=hf.get("top_k_experts"),
        expert_dim=hf.get("moe_intermediate_size"),
    )


def random_model(config: ModelConfig) -> Gemma4:
    """A model with normal weights: Tunix's own initialiser leaves every MLP at zero."""
    model, rng = Gemma4(config, rngs=nnx.Rngs(0)), np.random.default_rng(0)

    def draw(x: jax.Array) -> Any:
        return rng.normal(0, 0.02, x.shape).astype(x.dtype) if x.ndim > 1 else x

    nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
    return model


def sft_inputs(batch: peft_trainer.TrainingInput) -> dict[str, Any]:
    """What the loss of PeftTrainer takes."""
    return {
        "input_tokens": batch.input_tokens,
        "input_mask": batch.input_mask,
        "positions": utils.build_positions_from_mask(batch.input_mask),
        "attention_mask": utils.make_causal_attn_mask(batch.input_mask),
    }


def preference_batch(rows: np.ndarray) -> dpo_trainer.TrainingInput:
    """Pairs from rows [B, T]: even rows give prompt and chosen half, odd rows the rejected half."""
    half = rows.shape[1] // 2
    prompt, chosen, rejected = rows[::2, :half], rows[::2, half:], rows[1::2, half:]
    return dpo_trainer.TrainingInput(
        prompt_ids=prompt,
        prompt_mask=np.ones_like(prompt),
        chosen_ids=chosen,
        chosen_mask=np.ones_like(chosen),
        rejected_ids=rejected,
        rejected_mask=np.ones_like(rejected),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--task", choices=("sft", "dpo"), default="sft")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()

    config = model_config(json.loads(Path(args.config).read_text()))
    model = random_model(config)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4, weight_decay=0.0))
    shape = (args.repeat + WARM_UP, args.batch, args.seq)
    rows = np.random.default_rng(0).integers(3, config.num_embed, shape, dtype=np.int32)
    trainer: peft_trainer.PeftTrainer
    if args.task == "sft":
        settings = peft_trainer.TrainingConfig(eval_every_n_steps=1)  # there is nothing to evaluate
        trainer = peft_trainer.PeftTrainer(model, optimizer, settings)
        trainer = trainer.with_gen_model_input_fn(sft_inputs)
        batches = [
            peft_trainer.TrainingInput(input_tokens=r, input_mask=np.ones(r.shape, bool))
            for r in rows
        ]
    else:
        settings = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=1)
        trainer = dpo_trainer.DPOTrainer(model, nnx.clone(model), optimizer, settings)
        batches = [preference_batch(r) for r in rows]
    clock = _Clock(batches, model)
    trainer.train(clock)

    steps = np.diff(np.array(clock.marks), axis=0)
    spans = steps[WARM_UP:]
    compiling = steps[0] - np.median(spans, axis=0)
    timing = Timing(wall=tuple(spans[:, 0]), cpu=tuple(spans[:, 1]))
    rates = timing.rates(args.batch * args.seq)
    emit(
        {
            "benchmark": "train_step",
            "stack": f"tunix {importlib.metadata.version('google-tunix')}",
            "task": args.task,
            "reference": "live" if args.task == "dpo" else None,
            "batch": args.batch,
            "seq": args.seq,
            "params": sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param))),
            "dtype": "float32",
            "tokens_per_second": rates["per_second"],
            "tokens_per_cpu_second": rates["per_cpu_second"],
            "peak_rss_mib": peak_rss_mib(),
            "compile_seconds": round(compiling[0], 2),
            "compile_cpu_seconds": round(compiling[1], 2),
            "jax": jax.__version__,
            "flax": importlib.metadata.version("flax"),
        }
    )


if __name__ == "__main__":
    main()
