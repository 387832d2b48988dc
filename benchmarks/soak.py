"""An engine under random requests for a while: every answer right, no page and no memory lost. JSON lines.

    python -m benchmarks.soak --minutes 30

A tiny model with random weights; prompts of 1 to --longest tokens, many of which begin alike, greedy and
sampled, some with penalties, some cancelled, arriving at random, with too little memory for all. One request in
--check is also run alone by a `Sampler` and must have equal tokens. Now and then all requests are let end: then
no page may be in use. Ends with exit code 1 if anything was wrong, or if memory in use grew by more than
--growth MiB after half of the time, when all programs have been compiled.
"""

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gemma4_jax.build import build
from gemma4_jax.errors import UserError, report_user_errors
from gemma4_jax.model.transformer import init_params
from gemma4_jax.presets import preset
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.engine import Engine


def main() -> int:
    """Run; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--longest", type=int, default=2048)
    parser.add_argument("--check", type=int, default=20)
    parser.add_argument("--growth", type=float, default=64.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with report_user_errors():
        _check(args)

    config = dataclasses.replace(preset("tiny-ple"), max_position=args.longest + 256)
    model = build(config, init_params(config, jax.random.key(args.seed)))
    engine = Engine(
        model, max_slots=8, max_tokens=3 * config.max_position, page_size=32, prefill_tokens=256, snapshots=8
    )  # fmt: skip
    sampler, rng = Sampler(model, max_batch=1), np.random.default_rng(args.seed)
    start, shown = time.monotonic(), 0.0
    counts = dict.fromkeys(("requests", "tokens", "cancelled", "checked", "wrong", "leaks"), 0)
    running: list[tuple[Any, list[int], dict[str, Any]]] = []
    first: float | None = None
    shared = rng.integers(3, 500, args.longest).tolist()
    while (spent := time.monotonic() - start) < 60 * args.minutes:
        if len(running) < 24 and rng.random() < 0.7:
            prompt, options = _request(rng, shared, args.longest)
            running.append((engine.submit(prompt, **options), prompt, options))
            counts["requests"] += 1
        engine.step()
        if running and rng.random() < 0.01:
            stream = running.pop(int(rng.integers(len(running))))[0]
            stream.cancel()
            counts["cancelled"] += 1
        if rng.random() < 0.002:
            while not engine.idle:
                engine.step()
            counts["leaks"] += engine.pages.in_use
        for request in [request for request in running if request[0].ended]:
            running.remove(request)
            stream, prompt, options = request
            found = stream.result()
            counts["tokens"] += len(found.tokens)
            if rng.integers(args.check) == 0:
                wanted = sampler.generate([prompt], **{**options, "seed": [options["seed"]]})[0]
                counts["checked"] += 1
                counts["wrong"] += found.tokens != wanted.tokens
        if spent - shown > 60:
            shown, memory = spent, _rss_mib()
            first = memory if first is None and spent > 30 * args.minutes else first
            grown = None if first is None else round(memory - first, 1)
            line = {"seconds": round(spent), **counts, "rss_mib": round(memory), "grown_mib": grown}
            print(json.dumps(line), flush=True)
    while not engine.idle:
        engine.step()
    counts["leaks"] += engine.pages.in_use
    engine.pages.forget()
    counts["leaks"] += engine.pages.count - engine.pages.available
    grown = 0.0 if first is None else _rss_mib() - first
    end = {"benchmark": "soak", "minutes": args.minutes, **counts, "grown_mib": round(grown, 1)}
    print(json.dumps(end))
    return int(bool(counts["wrong"] or counts["leaks"] or grown > args.growth))


def _check(args: argparse.Namespace) -> None:
    for name in ("minutes", "longest", "check", "growth"):
        value = getattr(args, name)
        if not value > 0:
            raise UserError(f"--{name} must be above 0, got {value:g}")


def _request(
    rng: np.random.Generator, shared: list[int], longest: int
) -> tuple[list[int], dict[str, Any]]:
    length = int(np.exp(rng.uniform(0, np.log(longest))))
    common = int(rng.integers(length)) if rng.random() < 0.5 else 0
    prompt = shared[:common] + rng.integers(3, 500, length - common).tolist()
    options: dict[str, Any] = {
        "max_new_tokens": int(rng.integers(1, 64)),
        "seed": int(rng.integers(2**40)),
        "ignore_eos": True,
    }
    if rng.random() < 0.5:
        options |= {"temperature": float(rng.uniform(0.5, 1.5)), "top_k": int(rng.integers(1, 64))}
    if rng.random() < 0.1:
        options |= {"repetition_penalty": 1.2, "frequency_penalty": 0.1}
    return prompt, options


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    sys.exit(main())
