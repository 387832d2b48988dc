"""The part of `gemma4 plan` that is about a machine: --topology, a mesh or a search for one, --compile.

Arithmetic alone, unless --compile asks for the program itself, which `train.ahead` compiles in a process of
its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Any

from gemma4_jax.commands.columns import gib, seconds, table
from gemma4_jax.errors import UserError, unknown

if TYPE_CHECKING:
    from gemma4_jax.config import ModelConfig
    from gemma4_jax.plan.search import Candidate, Found
    from gemma4_jax.plan.workload import Workload
    from gemma4_jax.topology import Topology

_PARTS = {
    "weights": "weights",
    "optimizer": "optimiser",
    "gradients": "gradients",
    "cache": "cache",
    "activations": "kept for the backward pass",
    "layer": "a layer while it runs",
    "loss": "  or, in place of a layer: loss, logits",
    "lookup": "  or, in place of a layer: looking up embeddings",
    "update": "  or, in place of all but state: the update",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a plan for a machine takes."""
    parser.add_argument(
        "--topology", metavar="NAME", help="such as v5p-128, tpu7x-64, h100-8, v5p:4x4x4"
    )
    parser.add_argument("--task", metavar="NAME", help="sft, dpo or decode (default: sft)")
    parser.add_argument(
        "--seq", type=int, metavar="N", help="tokens of a row, or of a conversation (default: 8192)"
    )
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="data, fsdp, expert, seq, tensor; -1: what is left (default: the fastest that fits)",
    )
    parser.add_argument("--remat", metavar="NAME", help="none, dots or full (with --mesh: full)")
    parser.add_argument(
        "--accumulation", type=int, metavar="N", help="micro-batches (default: as few as fit)"
    )
    parser.add_argument("--lora", type=int, metavar="RANK", help="train adapters alone")
    parser.add_argument("--base", metavar="FORM", help="with --lora: none, int8 or nf4")
    parser.add_argument(
        "--param-dtype",
        metavar="NAME",
        help="as parameters are held (default: float32; bfloat16 under adapters, and decoding)",
    )
    parser.add_argument("--optimizer", metavar="NAME", help="adamw, adafactor or muon")
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="meshes listed (default: 5)"
    )
    parser.add_argument(
        "--compile", action="store_true", help="compile the step for the machine, from a clone"
    )


def check_words(arguments: argparse.Namespace) -> None:
    """UserError for flags that do not go together."""
    mine = ("task", "seq", "mesh", "remat", "accumulation", "lora", "base", "optimizer", "compile")
    if not arguments.topology:
        for name in (*mine, "param_dtype"):
            if getattr(arguments, name):
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} is about a machine; say which: --topology v5p-128")
        return
    for name, instead in (("context", "--seq"), ("dtype", "--param-dtype")):
        if getattr(arguments, name) is not None:
            raise UserError(f"with --topology, --{name} is called {instead}")
    from gemma4_jax.plan.workload import BASES, ITEM_SIZES, OPTIMIZERS, REMAT_POLICIES, TASKS

    for name, known in (
        ("task", TASKS),
        ("remat", REMAT_POLICIES),
        ("base", BASES),
        ("param_dtype", ITEM_SIZES),
        ("optimizer", OPTIMIZERS),
    ):
        value = getattr(arguments, name)
        if value and value not in known:
            raise unknown(f"--{name.replace('_', '-')}", value, known)
    if arguments.base and not arguments.lora:
        raise UserError("--base is what adapters are trained over; add --lora RANK")
    if arguments.remat and not arguments.mesh:
        raise UserError("--remat goes with --mesh; without one all policies are tried")
    if arguments.accumulation and not arguments.mesh:
        raise UserError("--accumulation goes with --mesh; without one as few as fit are taken")


def page(config: ModelConfig, arguments: argparse.Namespace) -> str:
    """The plan as text, or as one JSON object."""
    from gemma4_jax.plan.search import search
    from gemma4_jax.topology import parse

    topology = parse(arguments.topology)
    asked = _asked(config, topology, arguments)
    found = search(asked, topology)
    chosen = _chosen(asked, topology, arguments, found)
    compiled = None
    if arguments.compile:
        if chosen is None:
            raise UserError("--compile needs a mesh, and none fits: give one with --mesh")
        from gemma4_jax.commands.plan_compiled import compile_ahead

        compiled = compile_ahead(chosen, topology, arguments.model)
    if arguments.json:
        return json.dumps(_plain(topology, asked, chosen, found, arguments.top, compiled))
    parts = [_head(topology, asked)]
    if chosen is not None:
        parts += [
            _memory(chosen, topology),
            _traffic(chosen, topology),
            _times(chosen, topology),
        ]
        if remark := _note(chosen, topology):
            parts.append(textwrap.fill(remark, 110))
    if compiled is not None and chosen is not None:
        parts.append(_compiled(chosen, compiled))
    parts.append(_search(found, topology, arguments.top))
    return "\n\n".join(parts)


def _asked(config: ModelConfig, topology: Topology, arguments: argparse.Namespace) -> Workload:
    from gemma4_jax.model.adapters import LoRA
    from gemma4_jax.plan.workload import Workload

    task: Any = arguments.task or "sft"
    lora = None
    if arguments.lora is not None:
        if arguments.lora < 1:
            raise UserError(f"--lora must be at least 1, got {arguments.lora}")
        # As the presets adapt them (configs/hardware.py).
        small = config.family == "small"
        targets = ("attention", "mlp", "per_layer_input" if small else "experts")
        lora = LoRA(rank=arguments.lora, targets=targets)
    held = "float32" if task != "decode" and lora is None else "bfloat16"
    tokens = min(8192, config.max_position) if arguments.seq is None else arguments.seq
    return Workload(
        config=config,
        task=task,
        tokens=tokens,
        rows=topology.devices if arguments.batch is None else arguments.batch,
        lora=lora,
        base=arguments.base or "none",
        param_dtype=arguments.param_dtype or held,
        optimizer=arguments.optimizer or "adamw",
        splash=topology.is_tpu,
    )


def _chosen(
    asked: Workload, topology: Topology, arguments: argparse.Namespace, found: Found
) -> Workload | None:
    """What is shown in detail: the mesh that was given, or the fastest that fits; None if none does."""
    from gemma4_jax.plan.search import least_accumulation
    from gemma4_jax.plan.workload import check, sizes_of
    from gemma4_jax.sharding import read_sizes

    if not arguments.mesh:
        return found.candidates[0].workload if found.candidates else None
    sizes = sizes_of(read_sizes(arguments.mesh, topology.devices))
    given = dataclasses.replace(
        asked,
        sizes=sizes,
        remat=arguments.remat or "full",
        accumulation=arguments.accumulation or 1,
    )
    check(given)
    if arguments.accumulation:
        return given
    fit, _ = least_accumulation(given, given.remat, topology)
    # Where nothing fits, the last one tried is the smallest.
    most = asked.rows // given.row_parts if given.trains else 1
    return fit or dataclasses.replace(given, accumulation=most)


def _head(topology: Topology, asked: Workload) -> str:
    shape = "x".join(map(str, topology.shape))
    pairs = "pairs" if asked.task == "dpo" else "rows" if asked.trains else "conversations"
    what = {"sft": "SFT", "dpo": "DPO", "decode": "decoding"}[asked.task]
    if asked.trains:
        what += (
            " of all parameters"
            if asked.lora is None
            else f" of adapters of rank {asked.lora.rank}"
        )
    base = "" if asked.base == "none" else f", base {asked.base}"
    state = f", {asked.optimizer}" if asked.trains else ""
    return (
        f"{asked.config.name} on {topology.name}: {topology.chips} chips ({shape}), {topology.devices} "
        f"devices of {gib(topology.memory)} GiB, {topology.processes} hosts\n"
        f"{what}, {asked.rows} {pairs} of {asked.tokens} tokens, parameters {asked.param_dtype}{base}, "
        f"computed in {asked.compute_dtype}{state}"
    )


def _note(chosen: Workload, topology: Topology) -> str:
    """What XLA on TPU makes of the mesh that the sums above leave out; "" if nothing."""
    from gemma4_jax.sharding import slice_note

    return slice_note(chosen.config.d_model, chosen.gathered_over) if topology.chip.torus else ""


def mesh_text(workload: Workload) -> str:
    """axis=n,... of the axes that are used."""
    used = [f"{axis}={size}" for axis, size in workload.mesh.items() if size > 1]
    return ",".join(used) or "one device"


def _memory(chosen: Workload, topology: Topology) -> str:
    from gemma4_jax.plan.memory import bytes_by_part, peak

    parts = bytes_by_part(chosen)
    rows = [(text, gib(parts[name])) for name, text in _PARTS.items() if parts[name]]
    top = peak(parts)
    rows.append(("peak", gib(top)))
    rows.append((f"of {gib(topology.memory)}", f"{top / topology.memory:.0%}"))
    micro = f", {chosen.accumulation} micro-batches, remat {chosen.remat}" if chosen.trains else ""
    return f"mesh {mesh_text(chosen)}{micro}\n\n" + table(("memory of a device", "GiB"), rows)


def _traffic(chosen: Workload, topology: Topology) -> str:
    from gemma4_jax.plan import network
    from gemma4_jax.plan.traffic import exchanges

    lines = network.lay_out(topology, chosen.sizes)
    rows = [
        (
            exchange.cause,
            exchange.operation,
            "+".join(exchange.axes),
            gib(exchange.sent),
            str(exchange.count),
            seconds(network.seconds(exchange, lines)),
            "beside products" if exchange.hidden else "waited for",
        )
        for exchange in exchanges(chosen)
    ]
    if not rows:
        return "nothing is exchanged"
    head = ("sent by a device in a step", "", "over", "GiB", "times", "limit", "")
    return table(head, rows)


def _times(chosen: Workload, topology: Topology) -> str:
    from gemma4_jax.plan.speed import ASSUMED, step_time

    time, a = step_time(chosen, topology), ASSUMED
    rows = [
        ("products, useful ones alone at the peak", seconds(time.compute), ""),
        ("memory, everything once", seconds(time.memory), ""),
        ("links, one exchange after the other", seconds(time.links), ""),
        (
            "products as done: recomputed, masked",
            "",
            seconds(time.products),
        ),
        ("memory", "", seconds(time.traffic)),
        ("exchanges beside products", "", seconds(time.hidden)),
        ("exchanges waited for", "", seconds(time.exposed)),
        ("step", "", seconds(time.step)),
    ]
    per_chip = time.tokens_per_second / topology.chips
    return (
        table(("time of a step", "limit", "predicted"), rows)
        + f"\npredicted: {time.tokens_per_second:,.0f} tokens/s, {per_chip:,.0f} a chip, MFU {time.mfu:.1%}"
        + f"\nassumed: products at {a.products:.0%} of the peak, with experts {a.grouped:.0%}, attention "
        f"{a.attention:.0%},"
        f"\nmemory and links at {a.bandwidth:.0%}; a step is the longest of products, memory and exchanges "
        "beside them,\nand then the exchanges waited for. None of it was measured."
    )


def _search(found: Found, topology: Topology, count: int) -> str:
    from gemma4_jax.plan.search import best_by_mesh

    rows = [_candidate(candidate, topology) for candidate in best_by_mesh(found, count)]
    head = ("meshes that fit", "remat", "micro", "GiB", "share", "step", "MFU", "tokens/s/chip")
    lines = [f"of {found.tried} meshes, each with every remat policy:"]
    if rows:
        lines.append(table(head, rows))
    else:
        lines.append("none fits")
    lines += [
        f"left out {refusal.count}: {refusal.reason}"
        + f" (nearest: {refusal.example})" * (not rows)
        if "GB a device" not in refusal.reason
        else f"left out {refusal.count}: {refusal.reason} (nearest: {refusal.example})"
        for refusal in found.refusals
    ]
    return "\n".join(lines)


def _candidate(candidate: Candidate, topology: Topology) -> tuple[str, ...]:
    time, w = candidate.time, candidate.workload
    return (
        mesh_text(w),
        w.remat if w.trains else "",
        str(w.accumulation),
        f"{candidate.peak / 2**30:.1f}",
        f"{candidate.peak / topology.memory:.0%}",
        seconds(time.step),
        f"{time.mfu:.1%}",
        f"{time.tokens_per_second / topology.chips:,.0f}",
    )


def _compiled(chosen: Workload, compiled: dict[str, Any]) -> str:
    """The compiler's figures beside ours."""
    from gemma4_jax.plan.memory import bytes_by_part, peak
    from gemma4_jax.plan.traffic import exchanges

    ours = sum(exchange.sent for exchange in exchanges(chosen))
    theirs = sum(found["bytes"] for found in compiled["collectives"])
    estimate = compiled["estimated_seconds"]
    rows = [
        ("peak, GiB", gib(peak(bytes_by_part(chosen))), gib(compiled["peak_bytes"])),
        ("exchanged by a device, GiB", gib(ours), gib(theirs)),
        ("fits", "", "yes" if compiled["fits"] else "no"),
        ("estimated step", "", "" if estimate is None else seconds(estimate)),
        ("seconds to compile", "", f"{compiled['seconds_to_compile']:.0f}"),
    ]
    return table(("compiled ahead of time", "here", "compiler"), rows)


def _plain(
    topology: Topology,
    asked: Workload,
    chosen: Workload | None,
    found: Found,
    count: int,
    compiled: dict[str, Any] | None,
) -> dict[str, Any]:
    from gemma4_jax.plan import network
    from gemma4_jax.plan.memory import bytes_by_part, peak
    from gemma4_jax.plan.search import best_by_mesh
    from gemma4_jax.plan.speed import ASSUMED, step_time
    from gemma4_jax.plan.traffic import exchanges

    plain: dict[str, Any] = {
        "topology": dataclasses.asdict(topology) | {"memory": topology.memory},
        "model": asked.config.name,
        "task": asked.task,
        "tokens": asked.tokens,
        "rows": asked.rows,
        "lora": None if asked.lora is None else asked.lora.rank,
        "param_dtype": asked.param_dtype,
        "assumptions": dataclasses.asdict(ASSUMED),
        "chosen": None,
        "note": "" if chosen is None else _note(chosen, topology),
        "search": {
            "tried": found.tried,
            "fit": [
                _choice(c.workload) | {"peak": c.peak, "time": dataclasses.asdict(c.time)}
                for c in best_by_mesh(found, count)
            ],
            "refusals": [dataclasses.asdict(refusal) for refusal in found.refusals],
        },
        "compiled": compiled,
    }
    if chosen is not None:
        parts, lines = bytes_by_part(chosen), network.lay_out(topology, chosen.sizes)
        plain["chosen"] = _choice(chosen) | {
            "memory": parts | {"peak": peak(parts)},
            "traffic": [
                dataclasses.asdict(e) | {"hidden": e.hidden, "seconds": network.seconds(e, lines)}
                for e in exchanges(chosen)
            ],
            "time": dataclasses.asdict(step_time(chosen, topology)),
        }
    return plain


def _choice(workload: Workload) -> dict[str, Any]:
    return {
        "mesh": workload.mesh,
        "remat": workload.remat,
        "accumulation": workload.accumulation,
    }
