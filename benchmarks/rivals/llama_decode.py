"""llama.cpp with 1, 8 and 32 users, on the work of benchmarks/engine.py: one JSON line each.

    python -m benchmarks.rivals.llama_decode MODEL.gguf --users 1 8 32 --prompt 512 --new 64

Needs llama-cpp-python; `benchmarks.rivals.llama_folder` says how the model is made. Through llama.cpp's own C
interface: prompts of random ids are read 512 tokens at a time, one user after the other, then all users go on
together, a token each per call, greedy, no stop ids. Rates are those of benchmarks/engine.py.
"""

import argparse
import ctypes
import time
from typing import Any

import llama_cpp as llama
import numpy as np

from benchmarks.measure import Timing, emit, peak_rss_mib

_CHUNK = 512  # llama.cpp's own default for tokens of one pass


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a GGUF file")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    llama.llama_backend_init()
    # Held here: the library keeps the pointer to it.
    silent = llama.llama_log_callback(lambda *_: None)
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    given = llama.llama_model_default_params()
    model = llama.llama_model_load_from_file(args.model.encode(), given)
    if not model:
        raise SystemExit(f"error: llama.cpp does not load {args.model}")
    for users in args.users:
        measure(args, model, users)


def measure(args: argparse.Namespace, model: Any, users: int) -> None:
    """One line."""
    given = llama.llama_context_default_params()
    given.n_ctx = users * -(-(args.prompt + args.new) // 256) * 256
    given.n_batch = given.n_ubatch = _CHUNK
    given.n_seq_max = users
    given.n_threads = given.n_threads_batch = args.threads
    given.swa_full = False
    context = llama.llama_init_from_model(model, given)
    if not context:
        raise SystemExit(f"error: llama.cpp makes no context for {users} users")
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(_CHUNK, 0, 1)
    rng = np.random.default_rng(0)

    def put(tokens: list[tuple[int, int, int, bool]]) -> None:
        """One pass over (id, position, user, whether its scores are wanted)."""
        batch.n_tokens = len(tokens)
        for at, (token, position, user, wanted) in enumerate(tokens):
            batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, user
        if llama.llama_decode(context, batch) != 0:
            raise SystemExit("error: llama.cpp could not decode")

    def chosen(at: int) -> int:
        scores = llama.llama_get_logits_ith(context, at)
        return int(np.argmax(np.ctypeslib.as_array(scores, shape=(vocab,))))

    def once() -> tuple[list[tuple[float, float]], list[float]]:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        prompts = rng.integers(3, vocab, (users, args.prompt)).tolist()
        clocks = [(time.perf_counter(), time.process_time())]
        last, first = [], []
        for user, prompt in enumerate(prompts):
            for start in range(0, args.prompt, _CHUNK):
                part = prompt[start : start + _CHUNK]
                end = start + len(part) == args.prompt
                put([(t, start + i, user, end and i == len(part) - 1) for i, t in enumerate(part)])
            last.append(chosen(len(part) - 1))
            first.append(time.perf_counter() - clocks[0][0])
        clocks.append((time.perf_counter(), time.process_time()))
        for step in range(args.new - 1):
            put([(token, args.prompt + step, user, True) for user, token in enumerate(last)])
            last = [chosen(user) for user in range(users)]
        clocks.append((time.perf_counter(), time.process_time()))
        return clocks, first

    once()
    runs = [once() for _ in range(args.repeat)]
    whole, prefill, decode = (
        Timing(
            wall=tuple(clocks[end][0] - clocks[at][0] for clocks, _ in runs),
            cpu=tuple(clocks[end][1] - clocks[at][1] for clocks, _ in runs),
        )
        for at, end in ((0, 2), (0, 1), (1, 2))
    )
    emit(
        {
            "benchmark": "engine",
            "stack": f"llama.cpp (llama-cpp-python {llama.__version__})",
            "model": args.model.rpartition("/")[2],
            "users": users,
            "prompt": args.prompt,
            "new": args.new,
            "whole": whole.rates(users * args.new),
            "prefill": prefill.rates(users * args.prompt),
            "decode": decode.rates(users * (args.new - 1)),
            "seconds_to_first_token": round(
                float(np.mean([np.mean(first) for _, first in runs])), 3
            ),
            "peak_rss_mib": peak_rss_mib(),
        }
    )
    llama.llama_batch_free(batch)
    llama.llama_free(context)


if __name__ == "__main__":
    main()
