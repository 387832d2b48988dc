"""Arrays by arithmetic are those of the traced model: names, shapes, axes, adapters, packed bases, moments."""

import dataclasses

import jax
import pytest

from configs.schema import OptimConfig
from gemma4_jax.config import ModelConfig
from gemma4_jax.model import adapters
from gemma4_jax.model.transformer import abstract_params, logical_axes
from gemma4_jax.model.weights import quantize
from gemma4_jax.plan import tree
from gemma4_jax.plan.memory import bytes_by_part
from gemma4_jax.plan.workload import OPTIMIZERS, Workload
from gemma4_jax.presets import PRESETS, preset
from train.optim import make_optimizer


def named(parameters):
    """(path, leaf) in order."""
    return [
        (tuple(key.key for key in path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(parameters)
    ]


def axes_of(names):
    return jax.tree.leaves(names, is_leaf=lambda x: isinstance(x, tuple))


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_of_the_tree(name):
    config = preset(name)
    real = [
        (path, leaf.shape, axes)
        for (path, leaf), axes in zip(
            named(abstract_params(config)), axes_of(logical_axes(config)), strict=True
        )
    ]
    assert [(leaf.path, leaf.shape, leaf.axes) for leaf in tree.parameters(config)] == real
    assert tree.matrices(config) == adapters.matrices(config)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", ["tiny-ple", "tiny-dense", "tiny-moe"])
def test_adapters_are_those_of_the_tree(name, dora):
    config, targets = preset(name), ("attention", "mlp", "per_layer_input")
    lora = adapters.LoRA(rank=4, targets=targets + (() if dora else ("experts",)), dora=dora)
    real = {
        path: (leaf.shape, axes)
        for (path, leaf), axes in zip(
            named(adapters.abstract_adapters(config, lora)),
            axes_of(adapters.adapter_axes(config, lora)),
            strict=True,
        )
    }
    assert {leaf.path: (leaf.shape, leaf.axes) for leaf in tree.adapters(config, lora)} == real


@pytest.mark.parametrize("form", ["int8", "nf4"])
def test_packed_bytes_are_those_of_quantised_matrices(form):
    config = preset("tiny-moe")
    of = {matrix.path: matrix for matrix in adapters.matrices(config)}
    total = 0
    for path, leaf in named(abstract_params(config, "bfloat16")):
        if path in of:
            lead, inputs = of[path].lead, of[path].inputs
            leaf = jax.eval_shape(
                lambda x, lead=lead, inputs=inputs: quantize(x, form, lead=lead, inputs=inputs),
                leaf,
            )
        total += sum(part.size * part.dtype.itemsize for part in jax.tree.leaves(leaf))
    work = Workload(config=config, tokens=64, rows=1, base=form, param_dtype="bfloat16")
    assert bytes_by_part(work)["weights"] == total


def widened() -> ModelConfig:
    """With axes long enough to be factored."""
    return dataclasses.replace(preset("tiny-moe"), d_model=256)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_moments_are_those_of_the_optimizer(optimizer):
    for config in (preset("tiny-ple"), widened()):
        state = jax.eval_shape(
            make_optimizer(OptimConfig(name=optimizer), 10).init, abstract_params(config)
        )
        real = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        work = Workload(config=config, tokens=64, rows=1, optimizer=optimizer)
        found = bytes_by_part(work)["optimizer"]
        if (
            optimizer == "muon"
        ):  # its counters and coefficients: a few numbers, however large the model
            assert 0 <= real - found < 64
        else:
            assert found == real
