"""Every preset by hardware fits into 90 % of its memory, by the sum of `plan.memory`; and the documented table.

After an intended change: `python -m tests.configs.test_presets_fit` writes the table of docs/presets.md anew.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import dpo, hardware, sft
from configs.adapters import LoRAConfig
from configs.schema import (
    AnyConfig,
    BatchConfig,
    DataConfig,
    DPOConfig,
    ModelSource,
    OptimConfig,
    SFTConfig,
)
from gemma4_jax.chips import CHIPS
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError
from gemma4_jax.model.adapters import Quantizer, init_adapters
from gemma4_jax.model.transformer import init_params, num_params
from gemma4_jax.plan import memory
from gemma4_jax.plan.memory import peak
from gemma4_jax.plan.workload import Workload, sizes_of
from gemma4_jax.presets import preset
from train.lora import hyperparameters
from train.optim import make_optimizer

ROOM = 0.9
# Devices as JAX counts them, and bytes of one. The data sheets are in gemma4_jax/chips.py.
MACHINES = {
    "24gb": (1, CHIPS["rtx4090"].memory),
    "80gb": (1, CHIPS["h100"].memory),
    "v5e-8": (8, CHIPS["v5e"].memory),
    "v5p-64": (32, CHIPS["v5p"].memory),
    "tpu7x-64": (64 * 2, CHIPS["tpu7x"].memory // 2),
}
OFFERED = [(task, offer) for offer in hardware.OFFERS for task in ("sft", "dpo")]
EACH = pytest.mark.parametrize(
    ("task", "offer"), OFFERED, ids=[f"{task}-{offer.name}" for task, offer in OFFERED]
)
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "presets.md"
START, END = "<!-- table -->\n", "<!-- end of table -->\n"


def bytes_by_part(config: AnyConfig, model: ModelConfig, devices: int) -> dict[str, int]:
    """What one device needs in a step of a run, by part."""
    pairs = isinstance(config, DPOConfig)
    work = Workload(
        config=model,
        task="dpo" if pairs else "sft",
        tokens=config.data.max_length,
        rows=config.batch.rows,
        sizes=sizes_of(config.mesh.sizes(devices)),
        accumulation=config.batch.accumulation,
        remat=config.model.remat,
        lora=hyperparameters(config.lora) if config.lora.rank else None,
        base=config.lora.base_quantization,
        param_dtype=config.model.param_dtype,
        compute_dtype=config.model.compute_dtype,
        optimizer=config.optim.name,
        stochastic_rounding=config.optim.stochastic_rounding,
    )
    return memory.bytes_by_part(work)


@functools.cache
def need(task: str, name: str) -> dict[str, int]:
    size = next(size for size in hardware.SIZES if name.startswith(size))
    devices = next(n for machine, (n, _) in MACHINES.items() if name.endswith(machine))
    return bytes_by_part(config_of(task, name), preset(size), devices)


def config_of(task: str, name: str) -> AnyConfig:
    return {"sft": sft.PRESETS, "dpo": dpo.PRESETS}[task][name]()


@EACH
def test_it_fits_with_room(task, offer):
    _, memory = MACHINES[offer.hardware]
    assert peak(need(task, offer.name)) <= ROOM * memory


@EACH
def test_rows_divide_among_devices(task, offer):
    config, (devices, _) = config_of(task, offer.name), MACHINES[offer.hardware]
    sizes = config.mesh.sizes(devices)
    taken, rest = divmod(config.batch.rows, config.batch.accumulation)
    assert rest == 0
    assert taken > 0 and taken % (sizes["data"] * sizes["fsdp"]) == 0


def test_machines_and_sizes_are_what_the_presets_take_them_for():
    assert {h.name: (h.devices, h.memory) for h in hardware.HARDWARE.values()} == MACHINES
    for size in hardware.SIZES.values():
        model = preset(size.name)
        per_layer = model.per_layer_vocab_size * model.num_layers * model.per_layer_input_width
        tables = model.vocab_size * model.d_model + per_layer
        assert size.parameters == pytest.approx(num_params(model), rel=1e-4)
        assert size.tables == pytest.approx(tables, rel=1e-3)


@pytest.mark.parametrize("offer", hardware.OFFERS, ids=lambda offer: offer.name)
def test_the_state_in_a_docstring_is_that_of_the_trees(offer):
    """Adapters and what every device holds whole come on top: a sixth at most, or a gigabyte."""
    parts = need("sft", offer.name)
    if offer.trains_adapters:
        found = parts["weights"]
    else:
        # The gradient that stays is float32; that of a micro-batch, in the type of parameters, is not meant.
        passing = 2 if offer.method == "lean" else 4
        accumulated = config_of("sft", offer.name).batch.accumulation > 1
        gradient = parts["gradients"] * (4 / (4 + passing) if accumulated else 1)
        found = parts["weights"] + parts["optimizer"] + gradient
    assert 0.995 * offer.state <= found <= max(7 / 6 * offer.state, offer.state + 1e9)


def variant(name: str, **changes: object) -> int:
    """Peak of a preset with some sections changed."""
    config = dataclasses.replace(sft.PRESETS[name](), **changes)
    size = next(size for size in hardware.SIZES if name.startswith(size))
    devices = next(n for machine, (n, _) in MACHINES.items() if name.endswith(machine))
    return peak(bytes_by_part(config, preset(size), devices))


def test_what_is_not_offered_does_not_fit():
    dense = hardware.SIZES["31b"].adapters
    assert variant("12b-qlora-24gb", lora=dense) > 24e9
    assert variant("31b-qlora-80gb", lora=dense) > ROOM * 80e9
    usual = {
        "model": ModelSource(compute_dtype="bfloat16", remat="full"),
        "optim": OptimConfig(),
    }
    assert variant("e2b-80gb", **usual) > 80e9
    assert variant("e2b-v5e-8", **usual) > ROOM * 16 * 2**30
    experts = hardware.SIZES["26b-a4b"].adapters
    packed = dataclasses.replace(experts, base_quantization="nf4")
    config = dataclasses.replace(sft.PRESETS["12b-lora-v5e-8"](), lora=packed)
    # Nor do 44 blocks that share a scale divide among 8 devices.
    with pytest.raises(UserError, match="does not divide the 44"):
        bytes_by_part(config, preset("26b-a4b"), 8)


@pytest.mark.parametrize("form", ["none", "int8", "nf4"])
def test_weights_and_optimizer_are_counted_as_they_are_made(form):
    """Against arrays in memory, of a model small enough to have them."""
    model = preset("tiny-moe")
    config = SFTConfig(
        model=ModelSource(param_dtype="bfloat16", compute_dtype="bfloat16"),
        lora=LoRAConfig(rank=4, base_quantization=form),
        data=DataConfig(max_length=512),
    )
    params = init_params(model, jax.random.key(0), "bfloat16")
    if form != "none":
        quantizer = Quantizer(model, form)
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: quantizer(tuple(key.key for key in path), leaf), params
        )
    adapters = init_adapters(model, hyperparameters(config.lora), 0, params)
    state = make_optimizer(config.optim, 10).init(adapters)

    def held(tree):
        return sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))

    parts = bytes_by_part(config, model, 1)
    assert parts["weights"] == held(params) + held(adapters)
    assert parts["optimizer"] == held(state)


def test_a_mesh_shares_what_it_splits_and_nothing_else():
    model = preset("31b")
    config = dataclasses.replace(sft.PRESETS["31b"](), batch=BatchConfig(rows=64, accumulation=2))
    one, many = bytes_by_part(config, model, 1), bytes_by_part(config, model, 32)
    assert one["weights"] == 4 * num_params(model)
    # Norms and scalars, 1.3 million of 30.7 thousand million numbers, are whole on each device.
    assert one["weights"] / 32 < many["weights"] < one["weights"] / 32 + 4 * 1.3e6
    assert one["activations"] == 32 * many["activations"]


def table() -> str:
    """The documented table: gigabytes of one device."""
    lines = [
        "| preset | task | memory of a device | weights | optimiser | gradients | layer inputs | a layer "
        "| loss | lookup | peak | share |",
        "|---|---|" + "---:|" * 10,
    ]
    for offer in hardware.OFFERS:
        _, memory = MACHINES[offer.hardware]
        for task in ("sft", "dpo"):
            parts = need(task, offer.name)
            top = peak(parts)
            names = ("weights", "optimizer", "gradients", "activations", "layer", "loss", "lookup")
            cells = " | ".join(f"{parts[name] / 1e9:.1f}" for name in names)
            lines.append(
                f"| `{offer.name}` | {task} | {memory / 1e9:.0f} | {cells} | {top / 1e9:.1f} | "
                f"{top / memory:.0%} |"
            )
    return "\n".join(lines) + "\n"


def test_the_documented_table_is_this_sum():
    text = DOCUMENT.read_text()
    assert text[text.index(START) + len(START) : text.index(END)] == table()


if __name__ == "__main__":
    text = DOCUMENT.read_text()
    before, after = text[: text.index(START) + len(START)], text[text.index(END) :]
    DOCUMENT.write_text(before + table() + after)
