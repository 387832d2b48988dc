"""The optimiser: AdamW under a schedule, after clipping the global gradient norm.

Weight decay touches projection matrices alone (leaves named `*_proj`), or the two of an adapter
(`lora_a`, `lora_b`; their product decays twice as fast). Embedding tables, norm scales,
router and expert scales do not decay: pulling a scale towards 0 shrinks a whole layer, and rows of
a table that a batch does not use would fade. `layer_scalar` is a buffer in Hugging Face's model;
the model stops its gradient, and without decay AdamW then leaves it bit for bit as it was.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from configs.schema import OptimConfig


def make_schedule(config: OptimConfig, steps: int) -> optax.Schedule:
    """Learning rate by number of updates done: linear warm-up, then the configured fall."""
    warmup = round(config.warmup_fraction * steps)
    peak, rest = config.peak_lr, max(1, steps - warmup)
    fall = {
        "constant": lambda: optax.constant_schedule(peak),
        "linear": lambda: optax.linear_schedule(peak, peak * config.final_lr_fraction, rest),
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=config.final_lr_fraction),
    }[config.schedule]()
    if not warmup:
        return fall

    # The first update already moves: a rate of exactly 0 would waste a batch.
    def climb(count: jax.Array) -> jax.Array:
        return peak * (count + 1) / warmup

    return optax.join_schedules([climb, fall], [warmup])


def decay_mask(params: Any) -> Any:
    """Tree of bools like `params`: True where weight decay applies."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: str(path[-1].key).endswith(("_proj", "lora_a", "lora_b")), params
    )


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """AdamW for a run of `steps` updates; moments are float32 whatever the parameters are."""
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )

    def init(params: Any) -> optax.OptState:
        return chain.init(jax.tree.map(lambda p: p.astype(jnp.float32), params))

    return optax.GradientTransformation(init, chain.update)
