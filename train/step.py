"""One optimiser step, the same for every loss: micro-batches -> gradient -> update.

Here: the train state, accumulation, the skipping of bad steps. Not here: losses (losses.py), the
optimiser (optim.py), the loop over data (loop.py).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from train import offload
from train.losses import Batch, Loss, LossFn, Params, batch_totals

Metrics = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything a step changes; donated to it.

    step: int32 [], batches seen. params, opt_state: trees. rng: uint32 key data.
    bad_steps: int32 [], skipped steps in a row up to now; skipped: int32 [], in the whole run.
    tokens: uint32 [2], tokens of all batches seen, padding left out: low and high word.
    typical_loss, loss_spread: float32 [], running mean of the loss and of its squared distance from that.
    reference: parameters of a reference that follows the policy (TR-DPO), or None.
    average: float32 exponential moving average of the parameters, or None.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    rng: jax.Array
    bad_steps: jax.Array
    skipped: jax.Array
    tokens: jax.Array
    typical_loss: jax.Array
    loss_spread: jax.Array
    reference: Params | None = None
    average: Params | None = None

    def num_tokens(self) -> int:
        """`tokens` as one number; waits for the step that made it."""
        low, high = (int(word) for word in np.asarray(self.tokens))
        return (high << 32) + low


# (state, batch, frozen) -> (new state, metrics); the state handed in is used up.
TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What a step does beside descending.

    accumulation: micro-batches a step is split into. sync_every: steps between updates of the reference
    towards the policy, by the share sync_alpha; 0: it stays what it was. average_decay: of the moving
    average of the parameters; 0: none. stochastic_rounding: of bfloat16 parameters. spike_sigma: how many
    deviations above the running mean make a loss a spike; 0: none is. group_norms: log gradient norms by
    group. offload: moments are in host memory between steps.
    """

    accumulation: int = 1
    sync_every: int = 0
    sync_alpha: float = 0.6
    average_decay: float = 0.0
    stochastic_rounding: bool = False
    spike_sigma: float = 0.0
    group_norms: bool = False
    offload: bool = False


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    seed: int,
    options: StepOptions = StepOptions(),
) -> TrainState:
    """State before the first step; takes over `params` (the first step donates them)."""
    # Copies: donated buffers must not be shared between fields.
    reference = jax.tree.map(jnp.copy, params) if options.sync_every else None
    average = None
    if options.average_decay:
        average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state=jax.jit(optimizer.init)(params),
        rng=jax.random.key_data(jax.random.key(seed)),
        bad_steps=jnp.int32(0),
        skipped=jnp.int32(0),
        tokens=jnp.zeros(2, jnp.uint32),
        typical_loss=jnp.float32(0),
        loss_spread=jnp.float32(0),
        reference=reference,
        average=average,
    )


def accumulate(
    loss_fn: LossFn, accumulation: int, params: Params, batch: Batch, key: jax.Array, frozen: Any
) -> tuple[Loss, Params]:
    """Loss and its gradient (float32) over a batch, in `accumulation` micro-batches.

    batch: arrays [rows, ...]; rows is a multiple of `accumulation`. The loss divides by the totals of the
    whole batch, so the result is that of one big batch.
    """
    totals = batch_totals(batch)

    def micro(part: Batch, key: jax.Array) -> tuple[Loss, Params]:
        def valued(params: Params) -> tuple[jax.Array, Loss]:
            loss = loss_fn(params, part, totals, key, frozen)
            return loss.value, loss

        (_, loss), grads = jax.value_and_grad(valued, has_aux=True)(params)
        return loss, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    if accumulation == 1:
        return micro(batch, key)
    # Every accumulation-th row: each device's rows are in all micro-batches, and none has to move.
    parts = jax.tree.map(
        lambda x: x.reshape(-1, accumulation, *x.shape[1:]).swapaxes(0, 1), dict(batch)
    )
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
    options: StepOptions = StepOptions(),
    shardings: Any = None,
) -> TrainStep:
    """Compiled step of any loss. `schedule` is only read for the log. shardings: of the new state; None: as
    the compiler sees fit.

    Metrics, float32 []: loss, grad_norm (before clipping), learning_rate, bad_steps (in a row), skipped
    (in all), and what the loss adds. A step whose loss or gradient is not finite, or whose loss is a spike,
    changes neither parameters nor optimiser state: it only counts.
    """

    def step(state: TrainState, batch: Batch, frozen: Any) -> tuple[TrainState, Metrics]:
        rng, key, rounding = jax.random.split(jax.random.wrap_key_data(state.rng), 3)
        fixed = frozen if state.reference is None else state.reference
        loss, grads = accumulate(loss_fn, options.accumulation, state.params, batch, key, fixed)
        grad_norm = optax.tree.norm(grads)
        spike, watched = _watch_loss(state, loss.value, options.spike_sigma)
        good = jnp.isfinite(loss.value) & jnp.isfinite(grad_norm) & ~spike

        held = offload.to_device(state.opt_state) if options.offload else state.opt_state
        updates, opt_state = optimizer.update(grads, held, state.params)
        params = apply_updates(
            state.params, updates, rounding if options.stochastic_rounding else None
        )

        def keep(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        opt_state = keep(opt_state, held)
        new_state = dataclasses.replace(
            watched,
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=offload.to_host(opt_state) if options.offload else opt_state,
            rng=jax.random.key_data(rng),
            bad_steps=jnp.where(good, 0, state.bad_steps + 1),
            skipped=state.skipped + ~good,
            tokens=_count(state.tokens, batch),
        )
        metrics = {
            "loss": loss.value,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step - state.skipped),
            "bad_steps": new_state.bad_steps,
            "skipped": new_state.skipped,
            **(group_norms(grads) if options.group_norms else {}),
            **{name: total / weight for name, (total, weight) in loss.metrics.items()},
        }
        return _follow(new_state, options), {n: jnp.float32(value) for n, value in metrics.items()}

    places = None if shardings is None else (shardings, None)
    return jax.jit(step, donate_argnums=0, out_shardings=places)


def _count(tokens: jax.Array, batch: Batch) -> jax.Array:
    """`tokens` [2] and those of a batch. In two words: one overflows at 4.3e9."""
    here = (batch["segment_ids"] > 0).sum(dtype=jnp.uint32)
    low = tokens[0] + here
    return jnp.stack([low, tokens[1] + (low < here).astype(jnp.uint32)])


def _follow(state: TrainState, options: StepOptions) -> TrainState:
    """The state after a step, with what follows its parameters."""
    params, reference, average = state.params, state.reference, state.average
    if reference is not None:
        due = state.step % options.sync_every == 0

        def towards(r: jax.Array, p: jax.Array) -> jax.Array:
            mixed = (1 - options.sync_alpha) * r + options.sync_alpha * p
            return jnp.where(due, mixed.astype(r.dtype), r)

        reference = jax.tree.map(towards, reference, params)
    if average is not None:
        decay = options.average_decay
        average = jax.tree.map(lambda a, p: a + (1 - decay) * (p - a), average, params)
    return dataclasses.replace(state, reference=reference, average=average)


def apply_updates(params: Params, updates: Params, key: jax.Array | None) -> Params:
    """params + updates, summed in float32, in the type of the parameters.

    key: of stochastic rounding (bfloat16 alone); None rounds to nearest. To nearest, an update of less than
    1/512 of a bfloat16 parameter is lost; at random, it arrives on average.
    """
    leaves, tree = jax.tree.flatten(params)
    keys = [None] * len(leaves) if key is None else list(jax.random.split(key, len(leaves)))
    moved = [
        _round(p.astype(jnp.float32) + u.astype(jnp.float32), p.dtype, k)
        for p, u, k in zip(leaves, jax.tree.leaves(updates), keys, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def _round(x: jax.Array, dtype: Any, key: jax.Array | None) -> jax.Array:
    if key is None or dtype != jnp.bfloat16:
        return x.astype(dtype)
    # bfloat16 is the upper half of a float32: noise below the cut carries over with the right probability.
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(kept, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(dtype)


def group_norms(grads: Params) -> Metrics:
    """Gradient norm of each group of parameters, "grad_norm/<group>", float32 []: attention, mlp, ..., norm."""
    squares: dict[str, jax.Array] = {}
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        names = [str(part.key) for part in path]
        part = next(n for n in names if not n.startswith(("segment_", "slot_")))
        group = "norm" if part.endswith("_norm") else part
        total = jnp.sum(jnp.square(grad.astype(jnp.float32)))
        squares[group] = squares.get(group, jnp.float32(0)) + total
    return {f"grad_norm/{group}": jnp.sqrt(total) for group, total in squares.items()}


# Steps that the running mean of the loss is over, and as many must have been before a loss is called a spike.
_SPIKE_WINDOW = 50


def _watch_loss(state: TrainState, loss: jax.Array, sigma: float) -> tuple[jax.Array, TrainState]:
    """Whether a loss is a spike, and the state with its running mean moved on if the loss is none."""
    seen = state.step - state.skipped
    distance = loss - state.typical_loss
    spike = jnp.bool_(False)
    if sigma:
        high = distance > sigma * jnp.sqrt(state.loss_spread)
        spike = high & (seen >= _SPIKE_WINDOW)
    # A plain mean of the first steps, then an exponential one; a loss that is not finite leaves no trace.
    share = jnp.where(
        jnp.isfinite(loss) & ~spike,
        1 / jnp.minimum(seen + 1, _SPIKE_WINDOW).astype(jnp.float32),
        0.0,
    )
    distance = jnp.where(share > 0, distance, 0.0)
    # The first distance is from 0 and says nothing about how losses scatter.
    spread = jnp.where(seen > 0, jnp.square(distance) - state.loss_spread, 0.0)
    return spike, dataclasses.replace(
        state,
        typical_loss=state.typical_loss + share * distance,
        loss_spread=state.loss_spread + share * spread,
    )
