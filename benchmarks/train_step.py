"""Speed and memory of one SFT or DPO train step at random weights: one JSON line.

    python benchmarks/train_step.py --config CONFIG_JSON --task sft|dpo --batch 8 --seq 128

`--batch` counts sequences: a DPO batch of 8 is 4 pairs. SFT trains on every token; in DPO the second half of
each sequence is the completion. tokens/s counts all of the batch's tokens once, however many passes
the task makes over them. Not here: input pipelines and checkpoints (the loop hides both behind the step).
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.measure import emit, peak_rss_mib, timed
from configs.losses import PreferenceConfig
from gemma4_jax.build import transformer
from gemma4_jax.checkpoint.safetensors import read_json
from gemma4_jax.errors import UserError, report_user_errors
from gemma4_jax.hf_config import config_from_hf
from gemma4_jax.model.block import REMAT_POLICIES
from gemma4_jax.model.transformer import init_params, num_params
from train.losses import make_dpo_loss, make_sft_loss, reference_pass
from train.step import init_state, make_train_step


def make_batch(vocab: int, task: str, batch: int, seq: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens in the arrays that the train step reads; [B,T] for SFT, [B/2,2,T] for DPO."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(3, vocab, (batch, seq + 1), dtype=np.int32)
    arrays = {
        "tokens": rows[:, :-1],
        "targets": rows[:, 1:],
        "loss_mask": np.ones((batch, seq), bool),
        "segment_ids": np.ones((batch, seq), np.int32),
        "positions": np.broadcast_to(np.arange(seq, dtype=np.int32), (batch, seq)).copy(),
    }
    if task == "sft":
        return arrays
    arrays["loss_mask"][:, : seq // 2] = False
    return {name: a.reshape(batch // 2, 2, seq) for name, a in arrays.items()}


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="Hugging Face config.json")
    parser.add_argument("--task", choices=("sft", "dpo"), default="sft")
    parser.add_argument("--batch", type=int, default=8, help="sequences in a step")
    parser.add_argument("--seq", type=int, default=128, help="tokens in a sequence")
    parser.add_argument(
        "--reference", choices=("live", "precomputed"), default="live", help="DPO only"
    )
    parser.add_argument("--dtype", default="float32", help="of the compute; parameters are float32")
    parser.add_argument("--remat", choices=REMAT_POLICIES, default="none")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args(argv)
    with report_user_errors():
        if (
            args.batch < 1
            or args.seq < 2
            or args.repeat < 1
            or (args.task == "dpo" and args.batch % 2)
        ):
            raise UserError(
                "--batch must be positive (even for dpo), --seq at least 2, --repeat positive"
            )
        emit(run(args))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One measurement."""
    config = config_from_hf(read_json(Path(args.config)))
    module = transformer(config, args.dtype, args.remat)
    params = init_params(config, jax.random.key(0))
    batch: dict[str, Any] = make_batch(config.vocab_size, args.task, args.batch, args.seq)
    live = args.task == "dpo" and args.reference == "live"
    frozen = jax.tree.map(jnp.copy, params) if live else None
    if args.task == "sft":
        loss = make_sft_loss(module, config)
    else:
        loss = make_dpo_loss(module, config, PreferenceConfig(), live=live)
        if not live:
            batch["reference_logprobs"] = np.asarray(reference_pass(module, config)(params, batch))
    schedule = optax.constant_schedule(1e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
    state = init_state(params, optimizer, seed=0)
    del params
    began = time.perf_counter(), time.process_time()
    # make_train_step jits; lowering it by hand separates compiling from running.
    jitted: Any = make_train_step(loss, optimizer, schedule)
    step = jitted.lower(state, batch, frozen).compile()
    compile_wall, compile_cpu = time.perf_counter() - began[0], time.process_time() - began[1]

    def work() -> None:
        nonlocal state
        state, metrics = step(state, batch, frozen)
        jax.block_until_ready(metrics["loss"])

    timing = timed(work, args.repeat)
    rates = timing.rates(args.batch * args.seq)
    return {
        "benchmark": "train_step",
        "stack": "gemma4_jax",
        "task": args.task,
        "reference": args.reference if args.task == "dpo" else None,
        "batch": args.batch,
        "seq": args.seq,
        "params": num_params(config),
        "dtype": args.dtype,
        "remat": args.remat,
        "tokens_per_second": rates["per_second"],
        "tokens_per_cpu_second": rates["per_cpu_second"],
        "peak_rss_mib": peak_rss_mib(),
        "compile_seconds": round(compile_wall, 2),
        "compile_cpu_seconds": round(compile_cpu, 2),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
