"""An engine with 1, 8 and 32 users at random weights: one JSON line each.

    python -m benchmarks.engine --config CONFIG_JSON --users 1 8 32 --prompt 512 --new 64

Every user asks at once, with a prompt of its own, greedy, no stop ids. Whole rates count all new tokens from
the first submission to the last answer, reading included; decode rates those after the moment when every user
has a token. Beside them the benchmark of rivals: `benchmarks.rivals.transformers_decode --batch USERS`.
"""

import argparse
import time

import jax
import numpy as np

from benchmarks.decode import config_of
from benchmarks.measure import Timing, emit, peak_rss_mib
from gemma4_jax.build import Model, build, dtype_named
from gemma4_jax.errors import report_user_errors
from gemma4_jax.model.transformer import init_params, num_params
from gemma4_jax.sample.buckets import power_of_two
from gemma4_jax.sample.engine import Engine


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--config", required=True, help="Hugging Face config.json, or a preset's name"
    )
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--cache-dtype", default=None)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    with report_user_errors():
        config, dtype = config_of(args.config), dtype_named(args.dtype)
        model = build(config, init_params(config, jax.random.key(0), dtype), dtype=dtype)
        for users in args.users:
            measure(args, model, users)


def measure(args: argparse.Namespace, model: Model, users: int) -> None:
    """One line."""
    slots = power_of_two(users)
    each = -(-(args.prompt + args.new) // 128) * 128
    engine = Engine(
        model,
        max_slots=slots,
        max_tokens=slots * each,
        max_context=each,
        snapshots=1,
        cache_dtype=args.cache_dtype,
    )
    engine.warm_up()
    rng = np.random.default_rng(0)

    def once() -> tuple[list[tuple[float, float]], list[float]]:
        engine.pages.forget()
        prompts = rng.integers(3, model.config.vocab_size, (users, args.prompt)).tolist()
        clocks = [(time.perf_counter(), time.process_time())]
        streams = [engine.submit(p, max_new_tokens=args.new, ignore_eos=True) for p in prompts]
        first = [0.0] * users
        while not engine.idle:
            engine.step()
            now = time.perf_counter() - clocks[0][0]
            first = [at or now * stream.ready for at, stream in zip(first, streams, strict=True)]
            if len(clocks) == 1 and all(first):
                begun = sum(len(event.tokens) for stream in streams for event in stream.waiting)
                clocks.append((time.perf_counter(), time.process_time()))
        clocks.append((time.perf_counter(), time.process_time()))
        left.append(users * args.new - begun)
        return clocks, first

    left: list[int] = []
    runs = [once() for _ in range(args.repeat)]
    whole, decode = (
        Timing(
            wall=tuple(clocks[-1][0] - clocks[at][0] for clocks, _ in runs),
            cpu=tuple(clocks[-1][1] - clocks[at][1] for clocks, _ in runs),
        )
        for at in (0, 1)
    )
    emit(
        {
            "benchmark": "engine",
            "stack": "gemma4_jax",
            "users": users,
            "prompt": args.prompt,
            "new": args.new,
            "params": num_params(model.config),
            "dtype": args.dtype,
            "cache_dtype": args.cache_dtype or args.dtype,
            "whole": whole.rates(users * args.new),
            "decode": decode.rates(min(left)),
            "seconds_to_first_token": round(
                float(np.mean([np.mean(first) for _, first in runs])), 3
            ),
            "peak_rss_mib": peak_rss_mib(),
            "jax": jax.__version__,
        }
    )


if __name__ == "__main__":
    main()
