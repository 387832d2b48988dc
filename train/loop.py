"""The training loop: restore, iterate, log, save, finish. The same for every task.

Here: the order of events of a run. Not here: what a step computes (step.py), what the data are
(data/), what a task's loss is (losses.py). `sft.py` and `dpo.py` put a `Task` together and call `fit`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from configs.schema import AnyConfig
from gemma4_jax import checkpoint
from gemma4_jax.build import build, dtype_named
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import abstract_params
from train import metrics
from train.checkpointer import Checkpointer
from train.data.pipeline import Source, iterate
from train.interrupts import Interrupts
from train.losses import LossFn, Params
from train.optim import make_optimizer, make_schedule
from train.progress import Reporter
from train.start import Start
from train.step import TrainState, init_state, make_train_step
from train.throughput import peak_flops, training_flops
from train.workdir import Workdir


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a run trains.

    initial: makes the parameters to start from; called only if there is no checkpoint.
    frozen: handed to the loss beside the parameters (a live reference, a base), or None.
    plots: metrics to draw at the end. forwards: passes per step beyond forward and backward.
    abstract: shapes of the trained parameters, None: those of the model. whole: trained parameters -> the
    model's. save_adapter: writes trained parameters that are not a whole model into a folder.
    """

    config: AnyConfig
    start: Start
    workdir: Workdir
    source: Source
    loss_fn: LossFn
    initial: Callable[[], Params]
    frozen: Any = None
    plots: tuple[str, ...] = ("loss",)
    forwards: float = 0.0
    abstract: Params | None = None
    whole: Callable[[Params], Params] = lambda params: params
    save_adapter: Callable[[Params, Path], None] | None = None


def total_steps(config: AnyConfig, examples: int) -> int:
    """Optimiser steps of a whole run: `run.steps`, or enough for `run.epochs` over `examples`."""
    return config.run.steps or math.ceil(config.run.epochs * examples / config.batch.rows)


def fit(task: Task) -> int:
    """Train to the end, or until a signal; returns the exit code of the process.

    0 when the run is finished; 128 + number of the signal when it stopped for one, having saved.
    """
    config, workdir = task.config, task.workdir
    total = total_steps(config, len(task.source))
    optimizer = make_optimizer(config.optim, total)
    step_fn = make_train_step(
        task.loss_fn, optimizer, make_schedule(config.optim, total), config.batch.accumulation
    )
    iterator = iterate(task.source, config.batch.rows, config.seed)
    checkpointer = Checkpointer(workdir.checkpoints, config.run.keep)
    state = _restore_or_init(task, optimizer, checkpointer, iterator)
    done = int(state.step)

    reporter = Reporter(total, done)
    log = metrics.MetricsFile(workdir.metrics, done)
    with Interrupts() as interrupts:
        try:
            reporter.line(f"step {done} of {total}, in {workdir.path}")
            window = metrics.Window(
                _flops_per_token(task), _peak(), config.batch.rows / len(task.source)
            )
            bad_steps: Any = int(state.bad_steps)
            for step in range(done + 1, total + 1):
                batch = next(iterator)
                state, values = step_fn(state, batch, task.frozen)
                window.add(batch, values)
                # Of the step before: to ask about this one would make the host wait for the device.
                _stop_if_diverged(bad_steps, step - 1, config.optim.max_bad_steps)
                bad_steps = values["bad_steps"]
                reporter.advance(step)
                if step % config.run.log_every == 0 or step == total:
                    row = window.close(step)
                    log.write(step, row)
                    reporter.metrics(step, row)
                if interrupts.requested or step == total or step % config.run.save_every == 0:
                    checkpointer.save(step, state, iterator)
                if interrupts.requested:
                    break
            _stop_if_diverged(bad_steps, int(state.step), config.optim.max_bad_steps)
        finally:
            log.close()
            checkpointer.close()
            reporter.close()
    if interrupts.requested:
        reporter.line(
            f"stopped by {interrupts.requested.name} after step {int(state.step)}, saved; "
            "the same command goes on from there"
        )
        return 128 + interrupts.requested
    _finish(task, state, reporter.line)
    return 0


def _restore_or_init(
    task: Task, optimizer: Any, checkpointer: Checkpointer, iterator: Any
) -> TrainState:
    """State of the newest checkpoint (moving `iterator` there), or that before the first step."""
    latest = checkpointer.latest_step()
    if latest is None:
        return init_state(task.initial(), optimizer, task.config.seed)
    abstract = task.abstract
    if abstract is None:
        dtype = dtype_named(task.config.model.param_dtype)
        abstract = abstract_params(task.start.config, dtype)
    like = jax.eval_shape(lambda params: init_state(params, optimizer, task.config.seed), abstract)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    return checkpointer.restore(latest, like, iterator)


def _stop_if_diverged(bad_steps: Any, step: int, limit: int) -> None:
    count = int(bad_steps)
    if count >= limit:
        raise UserError(
            f"{count} steps in a row, up to step {step}, had a loss or gradient that is not finite and "
            "were skipped (optim.max_bad_steps); lower optim.peak_lr, or look for NaN in the weights "
            "the run started from"
        )


def _flops_per_token(task: Task) -> float:
    return training_flops(task.start.config, task.source.length, forwards=task.forwards)


def _peak() -> float | None:
    peak = peak_flops(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()


def _finish(task: Task, state: TrainState, say: Callable[[str], None]) -> None:
    """Plot, export, and say where everything is."""
    workdir = task.workdir
    metrics.plot(workdir.metrics, workdir.plot, task.plots)
    say(f"finished: checkpoint {workdir.checkpoints / str(int(state.step))}")
    say(f"metrics {workdir.metrics}, plot {workdir.plot}")
    if task.config.run.export_huggingface:
        start = task.start
        if task.save_adapter is not None:
            task.save_adapter(state.params, workdir.adapter)
            say(f"PEFT adapter {workdir.adapter}")
        model = build(
            start.config,
            task.whole(state.params),
            start.tokenizer,
            chat_template=start.chat_template,
        )
        checkpoint.save_huggingface(model, workdir.huggingface)
        say(f"Hugging Face folder {workdir.huggingface}")
