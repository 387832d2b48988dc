"""The optimiser: AdamW, Adafactor or Muon under a schedule, after clipping the global gradient norm.

Weight decay touches projection matrices alone (leaves named `*_proj`), or the two of an adapter
(`lora_a`, `lora_b`; their product decays twice as fast). Embedding tables, norm scales,
router and expert scales do not decay: pulling a scale towards 0 shrinks a whole layer, and rows of
a table that a batch does not use would fade. `layer_scalar` is a buffer in Hugging Face's model;
the model stops its gradient, and without decay every optimiser then leaves it bit for bit as it was.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from configs.schema import OptimConfig
from train.routing import is_router

# Axes that a product with a projection sums over, and those it gives, counted from the end. What stands
# before them (repeats, layers of a run, experts) numbers matrices of their own.
_MATRIX_AXES = {
    "q_proj": ((-3,), (-2, -1)),
    "k_proj": ((-3,), (-2, -1)),
    "v_proj": ((-3,), (-2, -1)),
    "o_proj": ((-3, -2), (-1,)),
    "gate_proj": ((-2,), (-1,)),
    "up_proj": ((-2,), (-1,)),
    "down_proj": ((-2,), (-1,)),
    "out_proj": ((-2,), (-1,)),
}

# Root mean square of Muon's updates at a rate of 1: that of AdamW's (arXiv 2502.16982).
_MUON_RMS = 0.2


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
        lambda path, _: _name(path).endswith(("_proj", "lora_a", "lora_b")), params
    )


def router_mask(params: Any) -> Any:
    """Tree of bools like `params`: True for the parts of routers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_router(path), params)


def matrix_axes(params: Any) -> Any:
    """Tree like `params`: what Muon takes for rows and columns of a leaf; None where AdamW is used."""

    def axes(path: Any, leaf: Any) -> MuonDimensionNumbers | None:
        if _name(path) not in _MATRIX_AXES:
            return None
        rows, columns = (
            tuple(leaf.ndim + axis for axis in group) for group in _MATRIX_AXES[_name(path)]
        )
        return MuonDimensionNumbers(rows, columns)

    return jax.tree_util.tree_map_with_path(axes, params)


def make_optimizer(
    config: OptimConfig, steps: int, freeze_router: bool = False
) -> optax.GradientTransformation:
    """The optimiser of a run of `steps` updates; its state is float32 whatever the parameters are.

    freeze_router: routers stay as they are, decay included.
    """
    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _update_rule(config, make_schedule(config, steps)),
        optax.masked(optax.set_to_zero(), router_mask) if freeze_router else optax.identity(),
    )

    def init(params: Any) -> optax.OptState:
        return chain.init(_float32(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return chain.update(updates, state, None if params is None else _float32(params))

    return optax.GradientTransformation(init, update)


def _update_rule(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    if config.name == "adafactor":
        # Without scaling by the size of parameters, so that a rate means what it means for AdamW, and with
        # its decoupled decay.
        return optax.chain(
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.add_decayed_weights(config.weight_decay, decay_mask),
            optax.scale_by_learning_rate(rate),
        )
    if config.name == "muon":
        return muon(
            rate,
            beta=config.muon_momentum,
            weight_decay=config.weight_decay,
            weight_decay_mask=decay_mask,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=matrix_axes,
            consistent_rms=_MUON_RMS,
        )
    return optax.adamw(
        rate,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )


def _name(path: Any) -> str:
    return str(path[-1].key)


def _float32(params: Any) -> Any:
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)
