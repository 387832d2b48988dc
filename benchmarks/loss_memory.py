"""Temporary memory of a DPO step at the real vocabulary, from the compiled program; nothing runs.

    python -m benchmarks.loss_memory --tokens 2048

Two programs: ours, and the same step with all logits at once, the way a loss is first written. One JSON
line each.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.measure import emit
from configs.losses import PreferenceConfig
from gemma4_jax.build import transformer
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError, report_user_errors
from gemma4_jax.model.layers import soft_cap
from gemma4_jax.model.transformer import abstract_params
from gemma4_jax.presets import preset
from train.losses import Batch, Loss, LossFn, Params, Totals, make_dpo_loss
from train.step import init_state, make_train_step


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="B * T of the step, both sides")
    parser.add_argument("--d-model", type=int, default=512)
    args = parser.parse_args(argv)
    with report_user_errors():
        if args.tokens < 8 or args.tokens % 4 or args.d_model < 16:
            raise UserError(
                f"--tokens {args.tokens} must be a positive multiple of 4, --d-model {args.d_model} at least 16"
            )
        config = real_vocabulary(args.d_model)
        ours = make_dpo_loss(transformer(config), config, PreferenceConfig(), live=False)
        for name, loss_fn in (("chunked", ours), ("full logits", full_logits_loss(config))):
            emit(measure(name, loss_fn, config, args.tokens))


def real_vocabulary(d_model: int) -> ModelConfig:
    """Two layers under a table of the released models' 262,144 entries."""
    return dataclasses.replace(
        preset("tiny-dense"),
        vocab_size=262_144,
        d_model=d_model,
        layer_types=("sliding", "full"),
    )


def full_logits_loss(config: ModelConfig) -> LossFn:
    """The sigmoid loss through float32 logits [2B, T, V]."""
    module = transformer(config)

    def loss_fn(params: Params, batch: Batch, totals: Totals, key: jax.Array, frozen: Any) -> Loss:
        rows = {n: x.reshape(-1, x.shape[-1]) for n, x in batch.items() if x.ndim == 3}
        hidden: Any = module.apply(
            {"params": params}, rows["tokens"], rows["positions"], rows["segment_ids"]
        )
        logits = jnp.einsum("btd,vd->btv", hidden, params["embed"]["table"])
        logprobs = jax.nn.log_softmax(soft_cap(logits, config.logit_softcap))
        picked = jnp.take_along_axis(logprobs, rows["targets"][..., None], -1)[..., 0]
        policy = jnp.where(rows["loss_mask"], picked, 0.0).sum(-1).reshape(-1, 2)
        ratios = policy - batch["reference_logprobs"]
        losses = -jax.nn.log_sigmoid(0.1 * (ratios[:, 0] - ratios[:, 1]))
        return Loss(value=losses.sum() / totals["pairs"], metrics={})

    return loss_fn


def measure(name: str, loss_fn: LossFn, config: ModelConfig, tokens: int) -> dict[str, Any]:
    """Bytes of the compiled step, as XLA accounts for them."""
    optimizer = optax.adamw(1e-6)
    step: Any = make_train_step(loss_fn, optimizer, optax.constant_schedule(1e-6))
    state = jax.eval_shape(lambda params: init_state(params, optimizer, 0), abstract_params(config))
    ints = jax.ShapeDtypeStruct((2, 2, tokens // 4), jnp.int32)
    batch: dict[str, Any] = dict.fromkeys(("tokens", "targets", "positions", "segment_ids"), ints)
    batch["loss_mask"] = jax.ShapeDtypeStruct(ints.shape, jnp.bool_)
    batch["reference_logprobs"] = jax.ShapeDtypeStruct((2, 2), jnp.float32)
    memory = step.lower(state, batch, None).compile().memory_analysis()
    return {
        "benchmark": "loss_memory",
        "loss": name,
        "tokens": tokens,
        "vocabulary": config.vocab_size,
        "d_model": config.d_model,
        "temporaries_mib": round(memory.temp_size_in_bytes / 2**20, 1),
        "arguments_mib": round(memory.argument_size_in_bytes / 2**20, 1),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
