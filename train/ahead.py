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
from gemma4_jax import ahead, topology
from gemma4_jax.cli import CommandParser
from gemma4_jax.errors import UserError, report_user_errors

# Updates of the schedule, a constant in the program.
_STEPS = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 0 also for a step that does not fit."""
    with report_user_errors():
        args = _parser().read(sys.argv[1:] if argv is None else argv)
        ahead.prepare()
        report = compile_step(configuration(args), args.topology, args.level)
        print(json.dumps(report) if args.json else ahead.described(report), flush=True)
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
    """The run whose step is asked for. UserError for what no run could be. Imports jax."""
    from gemma4_jax.sharding import AXES, read_sizes

    sizes = read_sizes(args.mesh, topology.parse(args.topology).devices)
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
            "mesh": MeshConfig(**(dict.fromkeys(AXES, 1) | sizes)),
        }
        if args.task == "sft":
            return SFTConfig(**common)
        # With adapters the base is the reference; else a second copy of the model would be.
        reference: Any = "live" if args.lora else "precomputed"
        return DPOConfig(**common, loss=PreferenceConfig(reference=reference))
    except ConfigError as error:
        raise UserError(str(error)) from None


def compile_step(config: AnyConfig, machine: str, level: ahead.Level = "O0") -> dict[str, Any]:
    """Compile the step of a run on the machine of that name, after `ahead.prepare`; an `ahead.report`.

    Raises UserError.
    """
    from gemma4_jax.sharding import make_mesh
    from train.placement import mesh_sizes

    place = topology.parse(machine)
    devices = ahead.devices(place)
    mesh = make_mesh(mesh_sizes(config.mesh, len(devices)), devices)
    task = "sft" if isinstance(config, SFTConfig) else "dpo"
    model = config.model.path or config.model.architecture
    report = ahead.report(lambda: lower_step(config, mesh), mesh, place, level)
    return {"task": task, "model": model, **report}


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
    check_model(mesh, start.config, config.router)
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


if __name__ == "__main__":
    raise SystemExit(main())
