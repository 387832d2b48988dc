"""Compile a training step for TPUs that are not there: `python -m train.ahead TASK MODEL --topology NAME ...`.

    python -m train.ahead sft 31b --topology v5p-128 --seq 8192 --batch 64 --mesh fsdp=16,tensor=4 --remat full

The step is that of `train.sft` and `train.dpo`, whole: whether it fits into the devices' memory, what they
send each other, what it costs to compile. Nothing is loaded and nothing runs. Needs libtpu
(`pip install "jax[tpu]"`).
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import hardware
from configs.adapters import LoRAConfig
from configs.checks import ConfigError
from configs.losses import PreferenceConfig
from configs.mesh import MeshConfig
from configs.schema import (
    AnyConfig,
    BatchConfig,
    DataConfig,
    DPOConfig,
    ModelSource,
    OptimConfig,
    SFTConfig,
)
from gemma4_jax.cli import CommandParser
from gemma4_jax.errors import UserError, report_user_errors

# Updates of the schedule, a constant in the program.
_STEPS = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 0 also for a step that does not fit."""
    with report_user_errors():
        args = _parser().read(sys.argv[1:] if argv is None else argv)
        report = compile_step(configuration(args), args.topology, args.level)
        print(json.dumps(report) if args.json else described(report), flush=True)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="python -m train.ahead", description=__doc__)
    parser.add_argument("task", choices=("sft", "dpo"))
    parser.add_argument(
        "model", help="a preset (31b, ...), a config.json, or a folder with weights"
    )
    parser.add_argument(
        "--topology", required=True, help="v5e-8, v5p-128, tpu7x-64, v5p:4x8x8, ..."
    )
    parser.add_argument("--seq", type=int, default=8192, help="tokens of a row (8192)")
    parser.add_argument("--batch", type=int, required=True, help="rows of a step; dpo: pairs")
    parser.add_argument("--mesh", default="fsdp=-1", help="axis=n,axis=n (fsdp=-1: all devices)")
    parser.add_argument("--remat", default="full", choices=("none", "dots", "full"))
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step (1)")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters over a bfloat16 base")
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "adafactor", "muon"))
    parser.add_argument("--offload", action="store_true", help="moments in host memory")
    parser.add_argument(
        "--params", choices=("float32", "bfloat16"), help="type they are held in (float32)"
    )
    parser.add_argument(
        "--level",
        default="O0",
        choices=("O0", "O1", "default"),
        help="the compiler's effort (O0); seconds are estimated at default alone",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def configuration(args: argparse.Namespace) -> AnyConfig:
    """The run whose step is asked for. UserError for what no run could be."""
    folder = Path(args.model).is_dir()
    adapters = LoRAConfig()
    if args.lora:
        size = hardware.SIZES.get(args.model)
        adapters = dataclasses.replace(size.adapters if size else adapters, rank=args.lora)
    held: Any = args.params or ("bfloat16" if args.lora else "float32")
    try:
        common: dict[str, Any] = {
            "model": ModelSource(
                path=args.model if folder else "",
                architecture="" if folder else args.model,
                param_dtype=held,
                compute_dtype="bfloat16",
                remat=args.remat,
            ),
            "data": DataConfig(max_length=args.seq),
            "batch": BatchConfig(rows=args.batch, accumulation=args.accumulation),
            "optim": OptimConfig(
                name=args.optimizer,
                offload=args.offload,
                stochastic_rounding=held == "bfloat16" and not args.lora,
            ),
            "lora": adapters,
            "mesh": MeshConfig(**_sizes(args.mesh)),
        }
        if args.task == "sft":
            return SFTConfig(**common)
        # With adapters the base is the reference; else a second copy of the model would be.
        reference: Any = "live" if args.lora else "precomputed"
        return DPOConfig(**common, loss=PreferenceConfig(reference=reference))
    except ConfigError as error:
        raise UserError(str(error)) from None


def _sizes(text: str) -> dict[str, int]:
    """ "fsdp=16,tensor=4" by axis; one that is not named is 1."""
    known = [field.name for field in dataclasses.fields(MeshConfig)]
    sizes = dict.fromkeys(known, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in known or not size.lstrip("-").isdigit():
            raise UserError(
                f"--mesh has {part!r}; it must be AXIS=NUMBER, axes: {', '.join(known)}"
            )
        sizes[axis] = int(size)
    return sizes


def compile_step(config: AnyConfig, machine: str, level: Any = "O0") -> dict[str, Any]:
    """Compile the step of a run on the machine of that name; a report that JSON can hold.

    Bytes are those of one device, seconds wall-clock, `collectives` the largest first: count is how often a
    device takes part in one step, bytes what arrives each time. Raises UserError.
    """
    from gemma4_jax import ahead, topology

    ahead.prepare()
    import jax

    from gemma4_jax.sharding import make_mesh
    from train.placement import mesh_sizes

    place = topology.parse(machine)
    devices = ahead.devices(place)
    mesh = make_mesh(mesh_sizes(config.mesh, len(devices)), devices)
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        lowered, bounds = lower_step(config, mesh)
        seconds_to_lower = time.perf_counter() - began
        outcome = ahead.compiled(lowered, level, bounds)
    program, seconds = outcome.program, None
    if program is not None and level == "default":
        seconds = ahead.estimated_seconds(program.cycles(), place)
    collectives = [] if program is None else program.collectives(dict(mesh.shape))
    return {
        "task": "sft" if isinstance(config, SFTConfig) else "dpo",
        "model": config.model.path or config.model.architecture,
        "topology": machine,
        "mesh": dict(mesh.shape),
        "seconds_to_lower": round(seconds_to_lower, 2),
        "seconds_to_compile": round(outcome.seconds, 2),
        "cpu_seconds_to_compile": round(outcome.cpu_seconds, 2),
        "host_peak_bytes": outcome.host_peak,
        "peak_bytes": outcome.peak,
        "argument_bytes": outcome.arguments,
        "temporary_bytes": outcome.temporaries,
        "hbm_bytes": place.memory,
        "fits": outcome.fits,
        "collectives": [dataclasses.asdict(one) for one in collectives],
        "estimated_seconds": seconds,
    }


def lower_step(config: AnyConfig, mesh: Any) -> tuple[Any, dict[str, int]]:
    """The lowered step of a run on `mesh`, which `jax.set_mesh` has set; bounds of its loops, for `hlo`."""
    import numpy as np

    from gemma4_jax.logprobs import SCOPE, default_chunk
    from gemma4_jax.parallel.expert_dispatch import FURTHER_TURNS
    from gemma4_jax.sharding import rows_over, shardings
    from train import dpo, lora, program, sft
    from train.data.sequences import fill
    from train.placement import check_batch, check_model
    from train.start import open_start

    length, batch = config.data.max_length, config.batch
    check_batch(mesh, batch, length)
    start = open_start(config.model, config.seed, length, mesh)
    check_model(mesh, start.config)
    example = fill([], length)
    if isinstance(config, SFTConfig):
        objective = sft.objective(config, start)
    else:
        live = config.loss.reference == "live"
        objective = dpo.objective(config, start, live)
        example = {name: np.stack([values, values]) for name, values in example.items()}
        if not live:
            example["reference_logprobs"] = np.zeros(2, np.float32)
    params, axes = program.model_params(objective)
    if config.lora.rank:
        base = program.placed(params, shardings(axes, params, mesh))
        objective = lora.over_base(objective, base)
    run = program.make_program(objective, _STEPS)
    shapes = program.abstract_batch(example, batch.rows, mesh)
    step: Any = run.step
    lowered = step.lower(run.state, shapes, objective.frozen)
    # As if every target counted, and no expert had more tokens than there are lanes for.
    tokens = shapes["tokens"].size // batch.accumulation // rows_over(mesh) // mesh.shape["seq"]
    chunks = -(-tokens // default_chunk(start.config.vocab_size))
    return lowered, {SCOPE: chunks, FURTHER_TURNS: 0}


def described(report: dict[str, Any]) -> str:
    """A report as lines for people."""
    gib = 2**30
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    verdict = "fits" if report["fits"] else "DOES NOT FIT"
    lines = [
        f"{report['task']} of {report['model']} on {report['topology']} ({mesh or 'one device'}): {verdict}, "
        f"{report['peak_bytes'] / gib:.2f} of {report['hbm_bytes'] / gib:.0f} GiB a device",
        f"lowered in {report['seconds_to_lower']:.1f} s, compiled in {report['seconds_to_compile']:.1f} s "
        f"({report['cpu_seconds_to_compile']:.0f} of CPU), "
        f"{report['host_peak_bytes'] / gib:.1f} GiB of this machine",
    ]
    if report["fits"]:
        lines.append(
            f"arguments {report['argument_bytes'] / gib:.2f} GiB, "
            f"temporaries {report['temporary_bytes'] / gib:.2f} GiB"
        )
    if report["estimated_seconds"] is not None:
        lines.append(
            f"a step takes the compiler's {report['estimated_seconds']:.2f} s, without waiting for others"
        )
    for one in report["collectives"][:12]:
        axes = ",".join(one["axes"] or ["?"])
        total = one["count"] * one["bytes"] / gib
        lines.append(
            f"  {total:8.2f} GiB  {one['operation']:<18} {one['shape']:<28} over {axes}, {one['count']} times"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
