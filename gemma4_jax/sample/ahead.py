"""Compile decoding for TPUs that are not there: `python -m gemma4_jax.sample.ahead MODEL --topology NAME ...`.

    python -m gemma4_jax.sample.ahead 31b --topology v5p-8 --seq 262144 --batch 1 --mesh seq=4

The program is that of the sampler: one step of so many conversations that have `--seq` tokens, or with
`--prompt` a chunk of their prompts. Nothing is loaded and nothing runs. Needs libtpu (`pip install
"jax[tpu]"`).
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from gemma4_jax.cli import CommandParser
from gemma4_jax.errors import UserError, report_user_errors

# As the released models come: temperature 1, top-k 64, top-p 0.95.
_TOP_K, _TOP_P = 64, 0.95
_STOP_IDS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code, 0 also for a program that does not fit."""
    with report_user_errors():
        args = _parser().read(sys.argv[1:] if argv is None else argv)
        report = compile_decoding(args)
        print(json.dumps(report) if args.json else _described(report), flush=True)
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(prog="python -m gemma4_jax.sample.ahead", description=__doc__)
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


def lower(
    config: Any, mesh: Any, tokens: int, rows: int, compression: Any, prompt: int | None
) -> tuple[Any, int]:
    """The lowered program on `mesh`, which `jax.set_mesh` has set; and bytes of the cache on one device.

    bfloat16 weights by `DECODING_RULES`. rows, tokens: rounded up to what the mesh divides, as by the sampler.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from gemma4_jax.build import transformer
    from gemma4_jax.model.cache import Cache, init_cache
    from gemma4_jax.model.transformer import abstract_params, logical_axes
    from gemma4_jax.sample import programs
    from gemma4_jax.sample.decode import DecodeState, PrefillState
    from gemma4_jax.sample.sampling import Settings, filters_for, row_keys
    from gemma4_jax.sharding import DECODING_RULES, TOKENS, platform, rows_over, shardings

    rows += -rows % rows_over(mesh)
    tokens += -tokens % mesh.shape[TOKENS]
    module = transformer(config, "bfloat16", platform=platform())

    def placed(tree: Any, specs: Any) -> Any:
        return jax.tree.map(
            lambda leaf, cut: jax.ShapeDtypeStruct(
                leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, cut)
            ),
            tree,
            specs,
        )

    def whole(shape: tuple[int, ...], dtype: Any) -> Any:
        return placed(jax.ShapeDtypeStruct(shape, dtype), PartitionSpec())

    shapes = abstract_params(config, jnp.bfloat16)
    params = jax.tree.map(
        lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
        shapes,
        shardings(logical_axes(config), shapes, mesh, DECODING_RULES),
    )
    tensor = mesh.shape["tensor"]
    empty = jax.eval_shape(
        lambda: init_cache(config, rows, tokens, jnp.bfloat16, compression, tensor)
    )
    cache: Cache = placed(empty, programs.cache_specs(config, empty, mesh))
    size = sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(cache.entries)
    )
    number, real = whole((rows,), jnp.int32), whole((rows,), jnp.float32)
    if prompt is not None:
        stream = placed(
            jax.ShapeDtypeStruct((rows, 1, config.d_model), jnp.bfloat16), programs.batch_spec()
        )
        prefill = PrefillState(cache, stream, whole((rows, 1), jnp.int32))
        chunk = whole((rows, prompt), jnp.int32)
        return programs.prefill_chunk.lower(module, params, prefill, chunk, number), size
    keys = jax.eval_shape(lambda: row_keys([0] * rows, [0] * rows))
    settings = Settings(real, number, real, real, whole(keys.shape, keys.dtype))
    flags = whole((rows,), jnp.bool_)
    state = DecodeState(cache, number, flags, number, number, settings)
    filters = filters_for(*(np.full(1, value) for value in (1.0, _TOP_K, _TOP_P, 0.0)))
    lowered = programs.decode_steps.lower(
        module, params, state, flags, whole((), jnp.int32), whole((_STOP_IDS,), jnp.int32),
        whole((config.vocab_size,), jnp.bool_), filters=filters, room=programs.DISPATCH_STEPS,
    )  # fmt: skip
    return lowered, size


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
