"""One optimiser step, the same for every loss: micro-batches -> gradient -> update.

Here: the train state, accumulation, the skipping of bad steps. Not here: losses (losses.py), the
optimiser (optim.py), the loop over data (loop.py).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train.losses import Batch, Loss, LossFn, Params

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything a step changes; donated to it.

    step: int32 [], batches seen. params, opt_state: trees. rng: uint32 key data.
    bad_steps: int32 [], skipped steps in a row up to now; skipped: int32 [], in the whole run.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    rng: jax.Array
    bad_steps: jax.Array
    skipped: jax.Array


# (state, batch, frozen) -> (new state, metrics); the state handed in is used up.
TrainStep = Callable[[TrainState, Mapping[str, np.ndarray], Any], tuple[TrainState, Metrics]]


def init_state(params: Params, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """State before the first step; takes over `params` (the first step donates them)."""
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=jax.jit(optimizer.init)(params),
        rng=jax.random.key_data(jax.random.key(seed)),
        bad_steps=jnp.int32(0),
        skipped=jnp.int32(0),
    )


def accumulate(
    loss_fn: LossFn, accumulation: int, params: Params, batch: Batch, key: jax.Array, frozen: Any
) -> tuple[Loss, Params]:
    """Loss sums and the gradient of the loss's sum over a batch, in `accumulation` micro-batches.

    batch: arrays [rows, ...]; rows is a multiple of `accumulation`. Gradients are float32 sums: dividing
    by the weight is left to the caller, who knows the whole weight.
    """

    def micro(part: Batch, key: jax.Array) -> tuple[Loss, Params]:
        def summed(params: Params) -> tuple[jax.Array, Loss]:
            loss = loss_fn(params, part, key, frozen)
            return loss.sum, loss

        (_, loss), grads = jax.value_and_grad(summed, has_aux=True)(params)
        return loss, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    if accumulation == 1:
        return micro(batch, key)
    parts = jax.tree.map(lambda x: x.reshape(accumulation, -1, *x.shape[1:]), dict(batch))
    keys = jax.random.split(key, accumulation)

    def body(total: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, micro(*xs)), None

    first = jax.tree.map(lambda x: x[0], parts)
    zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(micro, first, keys[0])
    )
    total, _ = jax.lax.scan(body, zero, (parts, keys))
    return total


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation: int = 1,
) -> TrainStep:
    """Compiled step of any loss. `schedule` is only read for the log.

    Metrics, float32 []: loss, grad_norm (before clipping), learning_rate, bad_steps (in a row), skipped
    (in all), and what the loss adds. A step whose loss or gradient is not finite changes neither
    parameters nor optimiser state: it only counts.
    """

    def step(state: TrainState, batch: Batch, frozen: Any) -> tuple[TrainState, Metrics]:
        rng, key = jax.random.split(jax.random.wrap_key_data(state.rng))
        loss, grads = accumulate(loss_fn, accumulation, state.params, batch, key, frozen)
        grads = jax.tree.map(lambda g: g / loss.weight, grads)
        mean = loss.sum / loss.weight
        grad_norm = optax.tree.norm(grads)
        good = jnp.isfinite(mean) & jnp.isfinite(grad_norm)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        new_state = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            rng=jax.random.key_data(rng),
            bad_steps=jnp.where(good, 0, state.bad_steps + 1),
            skipped=state.skipped + ~good,
        )
        metrics = {
            "loss": mean,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step - state.skipped),
            "bad_steps": new_state.bad_steps,
            "skipped": new_state.skipped,
            **{name: total / weight for name, (total, weight) in loss.metrics.items()},
        }
        return new_state, {name: jnp.float32(value) for name, value in metrics.items()}

    return jax.jit(step, donate_argnums=0)
