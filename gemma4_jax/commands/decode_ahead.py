"""Compile decoding for TPUs that are not there: `python -m gemma4_jax.commands.decode_ahead MODEL ...`.

    python -m gemma4_jax.commands.decode_ahead 31b --topology v5p-8 --seq 262144 --batch 1 --mesh seq=4

The program is that of the sampler: one step of so many conversations that have `--seq` tokens, or with
`--prompt` a chunk of their prompts. Nothing is loaded and nothing runs. Needs libtpu (`pip install
"jax[tpu]"`).
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from typing import Any

from gemma4_jax.errors import UserError, report_user_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 0 also for a program that does not fit."""
    with report_user_errors():
        args = _parser().parse_args(argv)
        report = compile_decoding(args)
        print(json.dumps(report) if args.json else _described(report), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gemma4_jax.commands.decode_ahead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a preset (31b, ...), a config.json, or a folder with one")
    parser.add_argument("--topology", required=True, help="v5e-8, v5p-8, tpu7x-64, v5p:2x2x1, ...")
    parser.add_argument("--seq", type=int, default=8192, help="positions a conversation has (8192)")
    parser.add_argument("--batch", type=int, default=1, help="conversations (1)")
    parser.add_argument("--mesh", default="tensor=-1", help="axis=n,axis=n (tensor=-1)")
    parser.add_argument(
        "--prompt", type=int, metavar="C", help="compile a chunk of C prompt tokens"
    )
    parser.add_argument(
        "--compression",
        default="value",
        choices=("value", "value+rotated", "both"),
        help="how layers whose keys are their values are remembered (value)",
    )
    parser.add_argument("--level", default="O0", choices=("O0", "O1", "default"))
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def compile_decoding(args: argparse.Namespace) -> dict[str, Any]:
    """Compile; a report that JSON can hold. Bytes are those of one device. Raises UserError."""
    from gemma4_jax import ahead, topology

    for name in ("seq", "batch", "prompt"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    ahead.prepare()
    import jax

    from gemma4_jax.commands.plan import find_config
    from gemma4_jax.sample.ahead import lower
    from gemma4_jax.sharding import make_mesh, read_sizes

    config = find_config(args.model)
    if args.seq > config.max_position:
        raise UserError(
            f"--seq must be at most {config.max_position}, the model's own, got {args.seq}"
        )
    place = topology.parse(args.topology)
    devices = ahead.devices(place)
    mesh = make_mesh(read_sizes(args.mesh, len(devices)), devices)
    with jax.set_mesh(mesh):
        began = time.perf_counter()
        lowered, cache_bytes = lower(
            config, mesh, args.seq, args.batch, args.compression, args.prompt
        )
        seconds_to_lower = time.perf_counter() - began
        outcome = ahead.compiled(lowered, args.level)
    program, seconds = outcome.program, None
    if program is not None and args.level == "default":
        seconds = ahead.estimated_seconds(program.cycles(), place)
    collectives = [] if program is None else program.collectives(dict(mesh.shape))
    return {
        "task": "decode" if args.prompt is None else "prefill",
        "model": args.model,
        "topology": args.topology,
        "mesh": dict(mesh.shape),
        "seconds_to_lower": round(seconds_to_lower, 2),
        "seconds_to_compile": round(outcome.seconds, 2),
        "cpu_seconds_to_compile": round(outcome.cpu_seconds, 2),
        "host_peak_bytes": outcome.host_peak,
        "peak_bytes": outcome.peak,
        "argument_bytes": outcome.arguments,
        "temporary_bytes": outcome.temporaries,
        "cache_bytes": cache_bytes,
        "hbm_bytes": place.memory,
        "fits": outcome.fits,
        "collectives": [dataclasses.asdict(one) for one in collectives],
        "estimated_seconds": seconds,
    }


def _described(report: dict[str, Any]) -> str:
    gib = 2**30
    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items() if size > 1)
    lines = [
        f"{report['task']} of {report['model']} on {report['topology']} ({mesh or 'one device'}): "
        f"{'fits' if report['fits'] else 'DOES NOT FIT'}, {report['peak_bytes'] / gib:.2f} of "
        f"{report['hbm_bytes'] / gib:.0f} GiB a device, of which {report['cache_bytes'] / gib:.2f} are cache",
        f"arguments {(report['argument_bytes'] or 0) / gib:.2f}, "
        f"temporaries {(report['temporary_bytes'] or 0) / gib:.2f} GiB",
        f"lowered in {report['seconds_to_lower']:.1f} s, compiled in {report['seconds_to_compile']:.1f} s",
    ]
    for one in report["collectives"][:12]:
        axes = ",".join(one["axes"] or ["?"])
        lines.append(
            f"  {one['bytes'] / 2**20:8.2f} MiB  {one['operation']:<18} {one['shape']:<28} over {axes}, "
            f"{one['count']} times"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
