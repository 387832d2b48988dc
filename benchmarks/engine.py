"""An engine with 1, 8 and 32 users at random weights: one JSON line each.

    python -m benchmarks.engine --config CONFIG_JSON --users 1 8 32 --prompt 512 --new 64

Every user asks at once, with a prompt of its own, greedy, no stop ids. Three passes:

    whole     from the first submission to the last answer, reading and decoding side by side; all new tokens
    prefill   prompts alone (one new token each); prompt tokens
    decode    from the moment when every user has a token, while all of them go on, until each could have had
              `new` more; new tokens. Nobody leaves before: users that began early have longer answers.

Beside them: `benchmarks.rivals.llama_decode`, and `benchmarks.rivals.transformers_decode --batch USERS`.
"""

import argparse
import time
from collections.abc import Sequence

import jax
import numpy as np

from benchmarks.decode import config_of
from benchmarks.measure import Timing, emit, peak_rss_mib
from gemma4_jax.build import Model, build, dtype_named
from gemma4_jax.errors import report_user_errors
from gemma4_jax.model.transformer import init_params, num_params
from gemma4_jax.sample.buckets import power_of_two
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.stream import Stream

Clock = tuple[float, float]  # seconds of wall clock, of CPU

# Prompt tokens that are read, and tokens that a row gets, in a step: the engine's defaults.
_CHUNK, _STEPS = 512, 8


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
        params = init_params(config, jax.random.key(0), dtype)
        model = build(config, params, dtype=dtype).for_decoding()
        for users in args.users:
            measure(args, model, users)


def measure(args: argparse.Namespace, model: Model, users: int) -> None:
    """One line."""
    slots = power_of_two(users)
    # Tokens that the first user may get while the others' prompts are read.
    lead = _STEPS * (users * -(-args.prompt // _CHUNK) + 1)
    each = -(-(args.prompt + lead + args.new + _STEPS) // 128) * 128
    engine = Engine(
        model,
        max_slots=slots,
        max_tokens=slots * each,
        max_context=each,
        prefill_tokens=_CHUNK,
        steps=_STEPS,
        snapshots=1,
        cache_dtype=args.cache_dtype,
    )
    engine.warm_up()
    rng = np.random.default_rng(0)

    def submitted(new: int) -> list[Stream]:
        engine.pages.forget()
        prompts = rng.integers(3, model.config.vocab_size, (users, args.prompt)).tolist()
        return [engine.submit(p, max_new_tokens=new, ignore_eos=True) for p in prompts]

    def answered(new: int) -> tuple[Clock, list[float]]:
        """What it took until everybody was done, and seconds to everybody's first token."""
        begun = _clock()
        streams = submitted(new)
        first = [0.0] * users
        while not engine.idle:
            engine.step()
            now = _clock()[0] - begun[0]
            first = [at or now * stream.ready for at, stream in zip(first, streams, strict=True)]
        return _since(begun), first

    def together() -> tuple[Clock, int]:
        """What it took while all users decoded, and how many tokens came meanwhile."""
        streams = submitted(lead + args.new + _STEPS)
        while not all(stream.ready for stream in streams):
            engine.step()
        before, begun = _tokens(streams), _clock()
        while _tokens(streams) - before < users * args.new:
            engine.step()
        taken, after = _since(begun), _tokens(streams)
        assert engine.active == users, "somebody was done before the others"
        for stream in streams:
            stream.cancel()
        return taken, after - before

    whole = [answered(args.new) for _ in range(args.repeat)]
    prefill = [answered(1)[0] for _ in range(args.repeat)]
    decode = [together() for _ in range(args.repeat)]
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
            "whole": _timing([taken for taken, _ in whole]).rates(users * args.new),
            "prefill": _timing(prefill).rates(users * args.prompt),
            "decode": _timing([taken for taken, _ in decode]).rates(min(n for _, n in decode)),
            "seconds_to_first_token": round(
                float(np.mean([np.mean(first) for _, first in whole])), 3
            ),
            "peak_rss_mib": peak_rss_mib(),
            "jax": jax.__version__,
        }
    )


def _clock() -> Clock:
    return time.perf_counter(), time.process_time()


def _since(begun: Clock) -> Clock:
    wall, cpu = _clock()
    return wall - begun[0], cpu - begun[1]


def _timing(taken: Sequence[Clock]) -> Timing:
    return Timing(wall=tuple(wall for wall, _ in taken), cpu=tuple(cpu for _, cpu in taken))


def _tokens(streams: Sequence[Stream]) -> int:
    return sum(len(event.tokens) for stream in streams for event in stream.waiting)


if __name__ == "__main__":
    main()
