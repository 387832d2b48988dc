"""Training adapters and not the model: LoRA, DoRA, and QLoRA over a base in 8 or 4 bits.

A `Task` becomes one whose trained parameters are the adapters alone, so that step, optimiser and checkpoints
know nothing of it; the base is what the loss reads and does not train. A preference loss finds its live
reference there: the base without adapters. Not here: what an adapter is (gemma4_jax/model/adapters.py),
files (gemma4_jax/checkpoint).
"""

import functools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import jax

from configs.adapters import LoRAConfig
from gemma4_jax.checkpoint import save_adapter
from gemma4_jax.config import ModelConfig
from gemma4_jax.distributed import barrier, is_main, say
from gemma4_jax.errors import UserError
from gemma4_jax.model.adapters import (
    LoRA,
    Quantizer,
    abstract_adapters,
    adapted_matrices,
    adapter_axes,
    attach,
    init_adapters,
)
from train.checksum import tree_checksum
from train.loop import Task
from train.losses import Batch, Loss, LossFn, Params, Totals
from train.program import Objective
from train.start import Start

AnyObjective = TypeVar("AnyObjective", bound=Objective)


def hyperparameters(config: LoRAConfig) -> LoRA:
    """What the library needs of a configuration whose rank is not 0."""
    return LoRA(
        rank=config.rank,
        alpha=config.alpha,
        targets=config.targets,
        dropout=config.dropout,
        rslora=config.rslora,
        dora=config.dora,
    )


def prepared(start: Start, config: LoRAConfig) -> Start:
    """`start` whose parameters come quantised if they are to be; as it is without LoRA.

    Raises UserError, before anything is loaded, if the model has nothing that is to be adapted.
    """
    if config.rank:
        adapted_matrices(start.config, hyperparameters(config))
    if config.base_quantization == "none":
        return start
    finish = Quantizer(start.config, config.base_quantization)
    load = functools.partial(start.load, finish=finish)
    return replace(start, load=load)


def adapted_loss(loss_fn: LossFn, lora: LoRA) -> LossFn:
    """The loss of a model with adapters: parameters are the adapters, `frozen` is the base.

    `loss_fn` gets the two joined, and the base as what it reads and does not train.
    """

    def adapted(params: Params, batch: Batch, totals: Totals, key: jax.Array, frozen: Any) -> Loss:
        ours, theirs = jax.random.split(key)
        return loss_fn(attach(frozen, params, lora, ours), batch, totals, theirs, frozen)

    return adapted


def over_base(objective: AnyObjective, base: Any) -> AnyObjective:
    """`objective` that trains adapters over `base`, which may be shapes."""
    config, model = objective.config.lora, objective.start.config
    lora = hyperparameters(config)
    return replace(
        objective,
        loss_fn=adapted_loss(objective.loss_fn, lora),
        frozen=base,
        abstract=abstract_adapters(model, lora),
        axes=adapter_axes(model, lora),
    )


def adapted(task: Task) -> Task:
    """`task` with adapters in the place of parameters; as it is if `lora.rank` is 0.

    The base is the task's live reference if it has one, so that there is never a second copy; else what the
    task would have started from.
    """
    config, model = task.config.lora, task.start.config
    if not config.rank:
        return task
    lora = hyperparameters(config)
    base = task.initial() if task.frozen is None else task.frozen
    _check_base(task.workdir.path / "base.json", base, task.workdir.has_checkpoint())
    say(summary(model, lora, base))

    def save(adapters: Params, folder: Path) -> None:
        source = task.config.model.path or task.config.model.architecture
        save_adapter(folder, model, lora, adapters, base=source)

    return replace(
        over_base(task, base),
        validation_loss_fn=adapted_loss(
            task.validation_loss_fn or task.loss_fn, replace(lora, dropout=0.0)
        ),
        initial=lambda: init_adapters(model, lora, task.config.seed, base),
        whole=lambda adapters: attach(base, adapters, lora),
        save_adapter=save,
        # The gradient of the base's weights, a third of a step's products, is never taken.
        forwards=task.forwards - 1.0,
    )


def summary(config: ModelConfig, lora: LoRA, base: Params) -> str:
    """One line: how much is trained, and how many matrices of each target. Layers count one by one."""
    trained = sum(leaf.size for leaf in jax.tree.leaves(abstract_adapters(config, lora)))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(base))
    count: Counter[str] = Counter()
    for matrix in adapted_matrices(config, lora):
        stack = matrix.shape[: matrix.layers]
        count[matrix.target] += functools.reduce(int.__mul__, stack, 1)
    each = ", ".join(f"{t} {count[t] or 'none in this model'}" for t in lora.targets)
    return (
        f"LoRA of rank {lora.rank}: {trained:,} trained parameters over a base of "
        f"{held / 1e6:,.1f} MB; adapted matrices: {each}"
    )


def _check_base(note: Path, base: Params, resuming: bool) -> None:
    """Note the checksum of the base; UserError if a run goes on with another one."""
    checksum = tree_checksum(base)
    if resuming and note.exists() and json.loads(note.read_text())["params"] != checksum:
        raise UserError(
            "the weights in model.path are not those this run's adapters were trained on; "
            "use another run.workdir, or the old weights"
        )
    barrier("base read")
    if is_main():
        note.write_text(json.dumps({"params": checksum}) + "\n")
