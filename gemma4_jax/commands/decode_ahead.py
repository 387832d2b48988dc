"""Compile decoding for TPUs that are not there: `python -m gemma4_jax.commands.decode_ahead MODEL ...`.

    python -m gemma4_jax.commands.decode_ahead 31b --topology v5p-8 --seq 262144 --batch 1 --mesh seq=4

The program is that of the sampler: one step of so many conversations that have `--seq` tokens, or with
`--prompt` a chunk of their prompts. Nothing is loaded and nothing runs. Needs libtpu (`pip install
"jax[tpu]"`).
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from gemma4_jax import ahead, topology
from gemma4_jax.errors import UserError, report_user_errors


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 0 also for a program that does not fit."""
    with report_user_errors():
        args = _parser().parse_args(argv)
        report = compile_decoding(args)
        print(json.dumps(report) if args.json else ahead.described(report), flush=True)
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
    """Compile; an `ahead.report`, with cache_bytes. Raises UserError."""
    for name in ("seq", "batch", "prompt"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")
    ahead.prepare()
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
    cache_bytes = 0

    def lowered() -> tuple[Any, None]:
        nonlocal cache_bytes
        program, cache_bytes = lower(
            config, mesh, args.seq, args.batch, args.compression, args.prompt
        )
        return program, None

    report = ahead.report(lowered, mesh, place, args.level)
    task = "decode" if args.prompt is None else "prefill"
    return {"task": task, "model": args.model, **report, "cache_bytes": cache_bytes}


if __name__ == "__main__":
    raise SystemExit(main())
