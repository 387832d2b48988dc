"""The training loop: restore, iterate, log, save, finish. The same for every task.

Here: the order of events of a run. Not here: what a step computes (step.py), what the data are
(data/), what a task's loss is (losses.py). `sft.py` and `dpo.py` put a `Task` together and call `fit`.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from configs.schema import AnyConfig
from gemma4_jax import checkpoint
from gemma4_jax.build import Model, build
from gemma4_jax.distributed import is_main, on_this_host, roster
from gemma4_jax.errors import UserError
from gemma4_jax.parallel.kernels import describe as describe_kernels
from train import metrics, samples
from train.checkpointer import BEST, Checkpointer
from train.data.pipeline import Batches, Source, iterate
from train.interrupts import Interrupts
from train.losses import LossFn, Params
from train.placement import describe, note, own_rows, put_tree, row_share
from train.program import Objective, Program, make_program
from train.progress import Reporter
from train.report import write_report
from train.step import TrainState
from train.throughput import Profiler, peak_flops, peak_memory, training_flops
from train.validation import Validation
from train.watchdog import Watchdog
from train.workdir import Workdir


@dataclass(frozen=True, kw_only=True)
class Task(Objective):
    """What a run trains, on what, and what it leaves behind.

    initial: makes the parameters to start from; called only if there is no checkpoint.
    plots: metrics to draw at the end. forwards: passes per step beyond forward and backward.
    prompts: to be answered before training and after. data: one line about the data, for the report.
    validation: held-out sources by name; validation_loss_fn: their loss, None: that of training.
    perplexity: exp of it is one. whole: trained parameters -> the model's. save_adapter: writes trained
    parameters that are not a whole model into a folder.
    """

    workdir: Workdir
    source: Source
    initial: Callable[[], Params]
    plots: tuple[str, ...] = ("loss",)
    forwards: float = 0.0
    prompts: Sequence[samples.Prompt] = ()
    data: str = ""
    validation: Mapping[str, Source] = field(default_factory=dict)
    validation_loss_fn: LossFn | None = None
    perplexity: bool = False
    whole: Callable[[Params], Params] = lambda params: params
    save_adapter: Callable[[Params, Path], None] | None = None


def total_steps(config: AnyConfig, examples: int) -> int:
    """Optimiser steps of a whole run: `run.steps`, or enough for `run.epochs` over `examples`."""
    return config.run.steps or math.ceil(config.run.epochs * examples / config.batch.rows)


def fit(task: Task) -> int:
    """Train to the end, or until a signal; returns the exit code of the process.

    0 when the run is finished; 128 + number of the signal when it stopped for one, having saved.
    """
    with jax.set_mesh(task.start.mesh):
        return _fit(task)


def _fit(task: Task) -> int:
    config, workdir, mesh = task.config, task.workdir, task.start.mesh
    total = total_steps(config, len(task.source))
    program = make_program(task, total)
    which, of = row_share(mesh)
    iterator = iterate(
        task.source,
        config.batch.rows,
        config.seed,
        buckets=config.data.buckets,
        workers=config.data.workers,
        share=which,
        shares=of,
    )
    keep = config.run
    checkpointer = Checkpointer(workdir.checkpoints, keep.keep, keep.keep_every, keep.keep_best)
    state = _restore_or_init(task, program, checkpointer, iterator)
    done = int(state.step)

    reporter = Reporter(total, done)
    log = metrics.MetricsFile(workdir.metrics, done) if is_main() else None
    board = None
    if config.run.tensorboard and is_main():
        board = metrics.TensorBoard(workdir.tensorboard)
    profiler = Profiler(workdir.profile, config.run.profile_at, config.run.profile_steps)
    validation = _validation(task)
    if done == 0:
        _sample(task, state, reporter.line)
    several = jax.process_count() > 1
    if several:
        names = roster()
        reporter.line("; ".join(names))
        if not is_main():
            # What jax says when that one dies is that connections broke, not whose.
            print(f"{names[jax.process_index()]}; all meet at {names[0]}", flush=True)
    with Interrupts(several) as interrupts, Watchdog(workdir.path / "stacks.txt") as watchdog:
        try:
            reporter.line(f"step {done} of {total}, in {workdir.path}, {describe(mesh, state)}")
            if remark := note(mesh, task.start.config):
                reporter.line(remark)
            reporter.line(describe_kernels(jax.default_backend(), config.model.gpu_kernels))
            window = metrics.Window(
                training_flops(task.start.config, task.source.length, forwards=task.forwards),
                1e12 * config.run.peak_tflops or peak_flops(jax.devices()[0].device_kind),
                config.batch.rows / len(task.source),
                mesh.size,
                of,
            )
            stopping: signal.Signals | None = None
            bad_steps: Any = int(state.bad_steps)
            before: Mapping[str, Any] | None = None
            for step in range(done + 1, total + 1):
                asked = time.monotonic()
                batch = next(iterator)
                waited = time.monotonic() - asked
                profiler.step(step)
                state, values = program.step(state, own_rows(batch, mesh), task.frozen)
                window.add(batch, values, waited)
                # Of the step before: to ask about this one would make the host wait for the device.
                _stop_if_diverged(task, bad_steps, step - 1, before)
                bad_steps, before = values["bad_steps"], batch
                reporter.advance(step)
                watchdog.beat()
                # Read once: a signal that comes from here on is the next step's.
                stopping, last = interrupts.stop_at(step), step == total
                saving = stopping or last or step % config.run.save_every == 0
                row: dict[str, float] = {}
                watchdog.pause()
                if last or step % config.run.log_every == 0:
                    row = window.close(step)
                    row |= {"num_tokens": state.num_tokens(), "memory_gib": peak_memory()}
                # A signal leaves little time: that checkpoint goes without a validation.
                if saving and validation is not None and not stopping:
                    window.pause()
                    row |= validation(_exported(state), _reads(task, state))
                    window.resume()
                if row and log is not None:
                    log.write(step, row)
                    if board is not None:
                        board.write(step, row)
                    reporter.metrics(step, row)
                if saving:
                    checkpointer.save(step, state, iterator, row.get(BEST))
                watchdog.resume()
                if stopping:
                    break
            _stop_if_diverged(task, bad_steps, int(state.step), before)
        finally:
            profiler.close()
            if log is not None:
                log.close()
            iterator.close()
            if board is not None:
                board.close()
            reporter.close()
            checkpointer.close()
    if stopping:
        reporter.line(
            f"stopped by {stopping.name} after step {int(state.step)}, saved; "
            "the same command goes on from there"
        )
        return 128 + stopping
    _finish(task, state, reporter.line)
    return 0


def _restore_or_init(
    task: Task, program: Program, checkpointer: Checkpointer, iterator: Batches
) -> TrainState:
    """State of the newest checkpoint (moving `iterator` there), or that before the first step."""
    if checkpointer.latest_step() is None:
        places = jax.tree.map(lambda leaf: leaf.sharding, program.state)
        params = put_tree(task.initial(), places.params)
        begin = jax.jit(program.begin, out_shardings=places, donate_argnums=0)
        state: TrainState = begin(params)
        return state
    restored = checkpointer.restore(program.state, iterator)
    assert restored is not None  # there is a latest step
    return restored[1]


def _stop_if_diverged(
    task: Task, bad_steps: Any, step: int, batch: Mapping[str, Any] | None
) -> None:
    """End a run that only skips, its last batch saved for whoever has to find out why."""
    count = int(bad_steps)
    if count < task.config.optim.max_bad_steps:
        return
    saved = ""
    if batch is not None:
        file = task.workdir.path / f"bad_batch_{step}.npz"
        with contextlib.suppress(OSError):
            arrays: dict[str, Any] = {name: np.asarray(x) for name, x in batch.items()}
            if is_main():
                np.savez_compressed(file, **arrays)
            saved = f"; the last batch is in {file}"
    raise UserError(
        f"{count} steps in a row, up to step {step}, were skipped (optim.max_bad_steps): their loss or "
        "gradient was not finite, or the loss a spike; lower optim.peak_lr, or look for NaN in the weights "
        f"the run started from{saved}"
    )


def _validation(task: Task) -> Validation | None:
    if not task.validation:
        return None
    batch = task.config.batch
    loss_fn = task.validation_loss_fn or task.loss_fn
    rows = batch.rows // batch.accumulation
    return Validation(task.validation, loss_fn, rows, task.perplexity, task.start.mesh)


def _exported(state: TrainState) -> Params:
    """The parameters that a run gives away: their moving average if it keeps one."""
    if state.average is None:
        return state.params
    return jax.tree.map(lambda a, p: a.astype(p.dtype), state.average, state.params)


def _reads(task: Task, state: TrainState) -> Any:
    """What the loss reads and does not train."""
    return task.frozen if state.reference is None else state.reference


def _model(task: Task, whole: Params) -> Model:
    start = task.start
    return build(start.config, whole, start.tokenizer, chat_template=start.chat_template)


def _sample(task: Task, state: TrainState, say: Callable[[str], None]) -> None:
    """Answers to the task's prompts, noted; nothing that goes wrong here is worth a run."""
    if not task.prompts:
        return
    try:
        answers = samples.ask(  # by all processes: each has a part of the model
            _model(task, task.whole(state.params)), list(task.prompts), int(state.step)
        )
        if is_main():
            samples.note(task.workdir.samples, answers)
    except (UserError, OSError) as error:
        say(f"no samples: {error}")


def _finish(task: Task, state: TrainState, say: Callable[[str], None]) -> None:
    """Plot, sample, report, export, and say where everything is."""
    workdir, config = task.workdir, task.config
    _sample(task, state, say)
    if config.run.export_huggingface:
        # All processes have a part of every array, so that all are needed.
        trained = _exported(state)
        whole = on_this_host(task.whole(trained))
        trained = on_this_host(trained)
    if not is_main():
        return
    metrics.plot(workdir.metrics, workdir.plot, task.plots)
    about = [
        ("model", f"{task.start.config.name}, from {config.model.path or 'random weights'}"),
        ("parameters trained", f"{sum(leaf.size for leaf in jax.tree.leaves(state.params)):,}"),
        ("data", f"{config.data.path}: {task.data}"),
        ("steps", f"{int(state.step)}, of which skipped {int(state.skipped)}"),
        ("device", f"{task.start.mesh.size} x {jax.devices()[0].device_kind}"),
    ]
    say(f"finished: checkpoint {workdir.checkpoints / str(int(state.step))}")
    say(f"metrics {workdir.metrics}, plot {workdir.plot}")
    say(f"report {write_report(workdir, config, about, task.prompts)}")
    if not config.run.export_huggingface:
        return
    if state.average is not None:
        say(f"exported: the moving average of the parameters ({config.optim.average_decay})")
    if task.save_adapter is not None:
        task.save_adapter(trained, workdir.adapter)
        say(f"PEFT adapter {workdir.adapter}")
    checkpoint.save_huggingface(_model(task, whole), workdir.huggingface)
    say(f"Hugging Face folder {workdir.huggingface}")
