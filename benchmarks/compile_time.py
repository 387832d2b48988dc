"""Compile time of the train step and of one decode step against depth, at equal widths: JSON lines.

    python benchmarks/compile_time.py [--kind dense|ple|moe] [--layers 12 60]

CPU seconds of lowering and of compiling (all threads), which other work on the machine disturbs less than
wall seconds. Nothing is run or allocated: parameters are abstract.
"""

import argparse
import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.measure import emit
from gemma4_jax.build import transformer
from gemma4_jax.config import FULL, SLIDING, LayerKind, ModelConfig
from gemma4_jax.model.cache import init_cache
from gemma4_jax.model.transformer import abstract_params
from gemma4_jax.presets import preset
from train.losses import make_sft_loss
from train.step import init_state, make_train_step


def deep(kind: str, layers: int) -> ModelConfig:
    """The tiny twin of a kind with (5 sliding + 1 full) blocks; `ple` shares K/V in the second half."""
    pattern: tuple[LayerKind, ...] = (*(SLIDING,) * 5, FULL)
    twin = preset(f"tiny-{kind}")
    shared = layers // 2 if twin.num_kv_shared_layers else 0
    return dataclasses.replace(
        twin, layer_types=pattern * (layers // 6), num_kv_shared_layers=shared
    )


def lower_train_step(config: ModelConfig, rows: int = 4, length: int = 64) -> Any:
    """The lowered SFT train step over abstract parameters."""
    optimizer = optax.adamw(1e-3)
    step: Any = make_train_step(
        make_sft_loss(transformer(config, remat="full"), config),
        optimizer,
        optax.constant_schedule(1e-3),
    )
    state = jax.eval_shape(lambda params: init_state(params, optimizer, 0), abstract_params(config))
    ints = jax.ShapeDtypeStruct((rows, length), jnp.int32)
    batch = {name: ints for name in ("tokens", "targets", "positions", "segment_ids")}
    batch["loss_mask"] = jax.ShapeDtypeStruct((rows, length), jnp.bool_)
    return step.lower(state, batch, None)


def lower_decode_step(config: ModelConfig, rows: int = 2, capacity: int = 128) -> Any:
    """The lowered pass of one new token per row, to logits."""
    module = transformer(config)

    def step(params: Any, tokens: Any, count: Any, cache: Any) -> Any:
        variables = {"params": params}
        hidden, cache = module.apply(variables, tokens, count, cache, method="extend")
        return module.apply(variables, hidden, method="logits"), cache

    return jax.jit(step, donate_argnums=3).lower(
        abstract_params(config),
        jax.ShapeDtypeStruct((rows, 1), jnp.int32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
        jax.eval_shape(lambda: init_cache(config, rows, capacity)),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=("dense", "ple", "moe"), default="dense")
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 60])
    args = parser.parse_args()
    for name, lower in (("train_step", lower_train_step), ("decode", lower_decode_step)):
        for layers in args.layers:
            config = deep(args.kind, layers)
            began = time.process_time()
            lowered = lower(config)
            traced = time.process_time()
            lowered.compile()
            emit(
                {
                    "benchmark": "compile_time",
                    "what": name,
                    "kind": args.kind,
                    "layers": layers,
                    "lower_cpu_seconds": round(traced - began, 2),
                    "compile_cpu_seconds": round(time.process_time() - traced, 2),
                    "jax": jax.__version__,
                }
            )


if __name__ == "__main__":
    main()
