"""The step of a run as a program: what it computes, the shapes it takes, and where their arrays live.

Nothing is loaded here and no device is needed: `loop.py` runs a program, `ahead.py` compiles it for machines
that are not there. Not here: what a step is (step.py), losses (losses.py), data.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from configs.schema import AnyConfig
from gemma4_jax.build import dtype_named
from gemma4_jax.model.transformer import abstract_params, logical_axes
from gemma4_jax.sharding import shardings
from train.losses import LossFn, Params
from train.optim import make_optimizer, make_schedule
from train.placement import batch_shardings, state_shardings
from train.start import Start
from train.step import StepOptions, TrainState, TrainStep, init_state, make_train_step


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What is descended on.

    frozen: handed to the loss beside the parameters (a live reference, a base), or None.
    sync_every, sync_alpha: how a reference in the train state follows the policy (TR-DPO).
    abstract, axes: shapes and logical axes of the trained parameters, None: those of the model.
    """

    config: AnyConfig
    start: Start
    loss_fn: LossFn
    frozen: Any = None
    sync_every: int = 0
    sync_alpha: float = 0.6
    abstract: Params | None = None
    axes: Any = None


@dataclass(frozen=True, kw_only=True)
class Program:
    """step: compiled as it is first called. begin: parameters -> the state before the first step, which takes
    them over. state: its shapes, and where each array lives."""

    step: TrainStep
    begin: Callable[[Params], TrainState]
    state: TrainState


def step_options(objective: Objective) -> StepOptions:
    """What a configuration asks of its steps."""
    optim = objective.config.optim
    return StepOptions(
        accumulation=objective.config.batch.accumulation,
        sync_every=objective.sync_every,
        sync_alpha=objective.sync_alpha,
        average_decay=optim.average_decay,
        stochastic_rounding=optim.stochastic_rounding,
        spike_sigma=optim.spike_sigma,
        group_norms=optim.group_norms,
        offload=optim.offload,
    )


def make_program(objective: Objective, total: int) -> Program:
    """The program of a run of `total` steps, on the mesh of its start; under `jax.set_mesh`."""
    config, mesh, options = objective.config, objective.start.mesh, step_options(objective)
    optimizer = make_optimizer(config.optim, total, config.router.freeze)

    def begin(params: Params) -> TrainState:
        return init_state(params, optimizer, config.seed, options)

    params, axes = objective.abstract, objective.axes
    if params is None:
        params, axes = model_params(objective)
    state = jax.eval_shape(begin, params)
    places = state_shardings(state, shardings(axes, params, mesh), mesh, config.optim.offload)
    step = make_train_step(
        objective.loss_fn, optimizer, make_schedule(config.optim, total), options, places
    )
    return Program(step=step, begin=begin, state=placed(state, places))


def model_params(objective: Objective) -> tuple[Params, Any]:
    """Shapes and logical axes of the model's own parameters."""
    model = objective.start.config
    dtype = dtype_named(objective.config.model.param_dtype)
    return abstract_params(model, dtype), logical_axes(model)


def placed(tree: Any, places: Any) -> Any:
    """Shapes, and where their arrays live."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        tree,
        places,
    )


def abstract_batch(example: Mapping[str, np.ndarray], rows: int, mesh: Any) -> dict[str, Any]:
    """Shapes of a batch of `rows` like `example`, and where its arrays live."""
    shapes = {
        name: jax.ShapeDtypeStruct((rows, *values.shape), values.dtype)
        for name, values in example.items()
    }
    batch: dict[str, Any] = placed(shapes, batch_shardings(shapes, mesh))
    return batch
