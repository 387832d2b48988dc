"""Noisy routers in training: Shazeer et al. 2017, arXiv 1701.06538, equation 4.

A `Task` becomes one that trains a matrix W_noise beside every router, so that step, optimiser and checkpoints
know nothing of it; the loss gives it keys, and the model adds noise only where there are some. So
validation, references, samples and exports have none. Not here: the formula (gemma4_jax/model/moe.py).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from gemma4_jax.build import dtype_named
from gemma4_jax.model.moe import RouterNoise
from gemma4_jax.model.transformer import abstract_params, logical_axes
from train.loop import Task
from train.losses import Batch, Loss, LossFn, Params, Totals

_ROUTER, _NOISE = "router_proj", "router_noise"


def with_noise(params: Params) -> Params:
    """`params` with W_noise beside every router: zeros, from which noise starts at softplus(0) = ln 2."""
    return _each_router(params, lambda moe: {**moe, _NOISE: jnp.zeros_like(moe[_ROUTER])})


def without_noise(params: Params) -> Params:
    """The parameters of the model alone."""
    return _each_router(params, lambda moe: {n: leaf for n, leaf in moe.items() if n != _NOISE})


def keyed(params: Params, key: jax.Array) -> Params:
    """`params` that make routers noisy for one pass: every layer has a key of its own."""
    numbers = iter(range(1 << 31))

    def draw(moe: Params) -> Params:
        weight, mine = moe[_NOISE], jax.random.fold_in(key, next(numbers))
        keys = jax.random.key_data(jax.random.split(mine, weight.shape[:-2]))
        return {**moe, _NOISE: RouterNoise(weight, keys)}

    return _each_router(params, draw)


def noisy_loss(loss_fn: LossFn) -> LossFn:
    """`loss_fn` of parameters with W_noise, by noisy routers. What is frozen stays without noise."""

    def noisy(params: Params, batch: Batch, totals: Totals, key: jax.Array, frozen: Any) -> Loss:
        ours, theirs = jax.random.split(key)
        return loss_fn(keyed(params, ours), batch, totals, theirs, frozen)

    return noisy


def noisy(task: Task) -> Task:
    """`task` with noisy routers; as it is if `router.noise` is off or the model has no routers."""
    config, model = task.config, task.start.config
    if not config.router.noise or model.moe is None:
        return task
    shapes = abstract_params(model, dtype_named(config.model.param_dtype))
    return replace(
        task,
        loss_fn=noisy_loss(task.loss_fn),
        validation_loss_fn=task.validation_loss_fn or task.loss_fn,
        initial=lambda: with_noise(task.initial()),
        abstract=jax.eval_shape(with_noise, shapes),
        axes=_each_router(logical_axes(model), lambda moe: {**moe, _NOISE: moe[_ROUTER]}),
        whole=without_noise,
    )


def _each_router(tree: Params, change: Callable[[Params], Params]) -> Params:
    """`tree` with `change` made to every dict that holds a router."""
    if _ROUTER in tree:
        return change(tree)
    return {n: _each_router(v, change) if isinstance(v, dict) else v for n, v in tree.items()}
