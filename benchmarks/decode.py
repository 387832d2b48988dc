"""Speed and memory of prefill and decoding at random weights: one JSON line.

    python benchmarks/decode.py --config CONFIG_JSON --batch 1 --prompt 512 --new 64

`--config` is a Hugging Face config.json or the name of a preset. Greedy, no stop ids: every row generates
`--new` tokens, so rates count batch x prompt tokens in prefill and batch x (new - 1) in decoding (prefill
chooses the first). The programs are those of `Sampler`; not here: tokenisation and its host loop.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.measure import Timing, emit, peak_rss_mib
from gemma4_jax.build import build, dtype_named
from gemma4_jax.checkpoint.safetensors import read_json
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError, report_user_errors
from gemma4_jax.hf_config import config_from_hf
from gemma4_jax.model.cache import COMPRESSIONS, init_cache
from gemma4_jax.model.transformer import init_params, num_params
from gemma4_jax.presets import PRESETS, preset
from gemma4_jax.sample import Sampler, buckets


def main(argv: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", required=True, help="Hugging Face config.json, or a preset's name"
    )
    parser.add_argument("--batch", type=int, default=1, help="rows that decode together")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="tokens to generate per row")
    parser.add_argument("--dtype", default="float32", help="of parameters, compute and cache")
    parser.add_argument(
        "--compression", choices=COMPRESSIONS, default=None, help="default: Sampler's"
    )
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args(argv)
    with report_user_errors():
        if min(args.batch, args.prompt, args.repeat) < 1 or args.new < 2:
            raise UserError("--batch, --prompt and --repeat must be positive, --new at least 2")
        emit(run(args))


def config_of(name: str) -> ModelConfig:
    """A preset by its name, or the configuration in a Hugging Face config.json."""
    return preset(name) if name in PRESETS else config_from_hf(read_json(Path(name)))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """One measurement."""
    config = config_of(args.config)
    dtype = dtype_named(args.dtype)
    params = init_params(config, jax.random.key(0), dtype)
    kept = {} if args.compression is None else {"cache_compression": args.compression}
    model = build(config, params, dtype=dtype).for_decoding()
    sampler = Sampler(model, max_batch=args.batch, **kept)
    del params, model
    rng = np.random.default_rng(0)
    prompts = rng.integers(3, config.vocab_size, (args.batch, args.prompt)).tolist()

    def once() -> list[tuple[float, float]]:
        """Wall and CPU clocks at the start, after the first token, and at the end."""
        clocks = [(time.perf_counter(), time.process_time())]
        for chosen in sampler.dispatches(prompts, max_new_tokens=args.new, ignore_eos=True):
            if len(clocks) == 1:
                clocks.append((time.perf_counter(), time.process_time()))
            if not np.isfinite(chosen.logprobs).all():
                raise UserError("the random model's logits are not finite")
        clocks.append((time.perf_counter(), time.process_time()))
        return clocks

    first = once()
    runs = [once() for _ in range(args.repeat)]
    best = [min(r[stage + 1][0] - r[stage][0] for r in runs) for stage in (0, 1)]
    prefill, decode = (
        Timing(
            wall=tuple(r[stage + 1][0] - r[stage][0] for r in runs),
            cpu=tuple(r[stage + 1][1] - r[stage][1] for r in runs),
        )
        for stage in (0, 1)
    )
    prefill_rates = prefill.rates(args.batch * args.prompt)
    decode_rates = decode.rates(args.batch * (args.new - 1))
    capacity = buckets.capacity(args.prompt + args.new, config.max_position)
    cache = jax.eval_shape(
        lambda: init_cache(config, args.batch, capacity, dtype, sampler.cache_compression)
    )
    return {
        "benchmark": "decode",
        "stack": "gemma4_jax",
        "params": num_params(config),
        "batch": args.batch,
        "prompt": args.prompt,
        "new": args.new,
        "dtype": args.dtype,
        "compression": sampler.cache_compression,
        "prefill_tokens_per_second": prefill_rates["per_second"],
        "prefill_tokens_per_cpu_second": prefill_rates["per_cpu_second"],
        "decode_tokens_per_second": decode_rates["per_second"],
        "decode_tokens_per_cpu_second": decode_rates["per_cpu_second"],
        "compile_seconds": round(first[2][0] - first[0][0] - sum(best), 2),
        "compile_cpu_seconds": round(
            first[2][1] - first[0][1] - min(prefill.cpu) - min(decode.cpu), 2
        ),
        "cache_bytes": sum(
            leaf.size * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(cache)
        ),
        "peak_rss_mib": peak_rss_mib(),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
