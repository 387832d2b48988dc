"""What a model costs: parameters, FLOPs, memory, cache, and the limits of named chips.

MODEL is a preset, a Hugging Face config.json, or a folder that holds one. Times are limits that nothing
can beat, not predictions: no communication, nothing lost.

With --topology it plans a run on that machine: memory of a device by part, what devices exchange, the limits
and a predicted step, and which meshes fit.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gemma4_jax.commands import plan_machine
from gemma4_jax.commands.columns import gib, grouped, table
from gemma4_jax.errors import UserError, unknown

if TYPE_CHECKING:
    from gemma4_jax.config import ModelConfig
    from gemma4_jax.model.cache import Compression
    from gemma4_jax.plan.model import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `gemma4 plan` takes."""
    parser.add_argument("model", metavar="MODEL", help="preset, config.json, or folder with one")
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="tokens of a training sequence, and of a conversation that is decoded (default: 8192)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="sequences decoded together (default: 1); with --topology: rows of a step (DPO: pairs)",
    )
    parser.add_argument(
        "--dtype",
        metavar="NAME",
        help="float32, bfloat16 or float16: weights and cache in decoding (default: bfloat16)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, all in bytes")
    plan_machine.add_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Plan and print."""
    from gemma4_jax.plan.model import make_plan

    plan_machine.check_words(arguments)
    config = find_config(arguments.model)
    if arguments.topology:
        print(plan_machine.page(config, arguments))
        return
    batch = 1 if arguments.batch is None else arguments.batch
    plan = make_plan(config, arguments.context, batch, arguments.dtype or "bfloat16")
    print(json.dumps(plan.as_dict()) if arguments.json else render(plan))


def find_config(name: str) -> ModelConfig:
    """The configuration of a preset, of a config.json or of a folder; UserError if it is none."""
    from gemma4_jax.presets import PRESETS, preset

    if name in PRESETS:
        return preset(name)
    path = Path(name)
    if not path.exists():
        if os.sep in name or path.suffix == ".json":
            raise UserError(f"{name}: no such file or folder")
        raise unknown("model", name, PRESETS)

    from gemma4_jax.checkpoint import describe
    from gemma4_jax.checkpoint.safetensors import read_json
    from gemma4_jax.hf_config import config_from_hf

    if path.is_dir():
        return describe(path).config
    try:
        return config_from_hf(read_json(path))
    except UserError as error:
        message = str(error)
        raise UserError(message if message.startswith(name) else f"{name}: {message}") from None


def render(plan: Plan) -> str:
    """The plan as text."""
    parts = [
        _head(plan),
        _parameters(plan),
        _flops(plan),
        _memory(plan),
        _caches(plan),
        _limits(plan),
    ]
    return "\n\n".join(parts)


def _head(plan: Plan) -> str:
    config = plan.config
    kinds = config.layer_types
    return (
        f"{config.name}: {plan.parameters.total / 1e9:.2f} billion parameters, d_model {config.d_model}, "
        f"{config.num_layers} layers ({kinds.count('sliding')} sliding with window {config.window}, "
        f"{kinds.count('full')} full), context {config.max_position}"
    )


def _parameters(plan: Plan) -> str:
    parameters = plan.parameters
    names = {
        "token table": parameters.token_table,
        "per-layer table": parameters.per_layer_table,
        "attention": parameters.attention,
        "dense MLP": parameters.mlp,
        "experts": parameters.experts,
        "router": parameters.router,
        "per-layer inputs": parameters.per_layer_inputs,
        "per-layer context": parameters.per_layer_context,
        "norms, scalars": parameters.norms,
    }
    rows = [
        (name, grouped(count), f"{count / parameters.total:6.1%}")
        for name, count in names.items()
        if count
    ]
    rows.append(("total", grouped(parameters.total), ""))
    rows.append(("outside the tables", grouped(parameters.effective), ""))
    if plan.config.moe:
        rows.append(("active per token", grouped(plan.active), ""))
    return table(("parameters", "", "share"), rows)


def _flops(plan: Plan) -> str:
    columns = (plan.flops, plan.decode)
    rows = [
        (name, *(f"{getattr(flops, field) / 1e9:.3f}" for flops in columns))
        for name, field in (
            ("products with parameters", "matrices"),
            ("attention", "attention"),
            ("logits", "logits"),
            ("forward", "forward"),
        )
    ]
    rows.append(("backward", f"{plan.flops.backward / 1e9:.3f}", ""))
    rows.append(("training step", f"{plan.flops.training / 1e9:.3f}", ""))
    head = ("GFLOP per token", f"sequence of {plan.context}", f"decoding at {plan.context}")
    return table(head, rows)


def _memory(plan: Plan) -> str:
    training = plan.training
    rows = [
        (f"weights to decode with, {plan.dtype}", gib(plan.weights)),
        ("training, float32: weights", gib(training["weights"])),
        ("  gradients", gib(training["gradients"])),
        ("  AdamW's two moments", gib(training["optimizer"])),
        ("  together, activations left out", gib(training["total"])),
    ]
    return table(("memory", "GiB"), rows)


def _caches(plan: Plan) -> str:
    """One column per compression; those that make no difference to this model are one."""
    columns: dict[int, list[Compression]] = {}
    for name, per_token in plan.cache_per_token.items():
        columns.setdefault(per_token, []).append(name)
    kept: dict[str, Compression] = {", ".join(names): names[0] for names in columns.values()}
    if len(kept) == 1:
        kept = {"K and V": "both"}
    rows = [
        (
            "KiB per token, all layers growing",
            *(f"{plan.cache_per_token[name] / 1024:.1f}" for name in kept.values()),
            "",
        )
    ]
    for tokens in next(iter(plan.caches.values())):
        sizes = (gib(plan.caches[name][tokens]) for name in kept.values())
        rows.append((f"GiB at {tokens} tokens", *sizes, gib(plan.caches_int8[tokens])))
    smallest = next(iter(kept)).split(",")[0]
    return table((f"cache of a sequence, {plan.dtype}", *kept, f"{smallest}, int8"), rows)


def _limits(plan: Plan) -> str:
    rows = []
    for name, decode in plan.decode_limits.items():
        train = plan.train_limits[name]
        rows.append(
            (
                name,
                str(decode.chips),
                f"{decode.seconds_per_step * 1e3:.2f}",
                f"{decode.tokens_per_second:.0f}",
                decode.bound,
                str(train.chips),
                f"{train.tokens_per_second_per_chip:.0f}",
            )
        )
    head = (
        *("limits", "decoding: chips", "ms/step", "tokens/s", "bound by"),
        *("training: chips", "tokens/s/chip"),
    )
    note = (
        f"decoding {plan.batch} x {plan.context} tokens, training on sequences of {plan.context}; "
        "chips: fewest that hold weights and caches, or training state"
    )
    return table(head, rows) + "\n" + note
