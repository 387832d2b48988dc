"""`gemma4 generate MODEL --input PROMPTS.jsonl --output ANSWERS.jsonl`: what a terminal shows of a file job.

The job itself is `sample/file_job.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gemma4_jax.commands import constraining
from gemma4_jax.commands.answering import default_new_tokens, drafter_of, open_model, options
from gemma4_jax.errors import UserError

# Seconds between lines, where a terminal rewrites them and where not.
_OFTEN, _SELDOM = 0.5, 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a file job."""
    parser.add_argument(
        "--input",
        metavar="FILE",
        help="instead of PROMPT: JSONL, rows of {messages: [...]} or {prompt: raw text}",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="JSONL of answers to --input; the same command goes on after an interruption",
    )
    for name, default, about in (
        ("--max-slots", 32, "rows that decode together"),
        ("--max-tokens", 65_536, "positions that all rows together may hold"),
    ):
        parser.add_argument(
            name, type=int, default=default, metavar="N", help=f"{about} (default: {default})"
        )


def run(arguments: argparse.Namespace) -> None:
    """Answer a file."""
    if arguments.prompt is not None:
        raise UserError("PROMPT and --input both say what to answer; drop one of them")
    if arguments.output is None:
        raise UserError("--input needs --output: the file that answers go to")
    if arguments.raw or arguments.json or arguments.system is not None:
        raise UserError("--raw, --json and --system are for one PROMPT; drop them with --input")

    from gemma4_jax.compiled_programs import keep_compiled_programs
    from gemma4_jax.sample.engine import Engine
    from gemma4_jax.sample.file_job import answer_file

    constrained = constraining.read_flags(arguments)
    keep_compiled_programs()
    model = open_model(arguments)
    asked: dict[str, Any] = options(arguments) | constrained
    asked |= {
        "max_new_tokens": default_new_tokens(arguments, model),
        "enable_thinking": arguments.think,
    }
    engine = Engine(
        model,
        max_slots=arguments.max_slots,
        max_tokens=arguments.max_tokens,
        drafter=drafter_of(arguments, model),
        cache_dtype=arguments.cache_dtype,
    )
    settings = asked | {"model": str(Path(arguments.model).resolve()), "dtype": arguments.dtype}
    if arguments.cache_dtype is not None:
        settings["cache_dtype"] = arguments.cache_dtype
    if (constraint := constrained["constraint"]) is not None:
        settings["constraint"] = dataclasses.asdict(constraint)
    output = Path(arguments.output)
    try:
        end = answer_file(engine, Path(arguments.input), output, asked, settings, _shown())
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on in {output}", file=sys.stderr)
        raise
    refused = f", {end.refused} could not be answered: see their lines" if end.refused else ""
    print(f"{end.answered} of {end.rows} answers in {output}{refused}", file=sys.stderr)


def _shown() -> Callable[[Any], None]:
    """A line of progress now and then; on a terminal it is rewritten."""
    terminal = sys.stderr.isatty()
    start = time.perf_counter()
    last, first = start, -1

    def told(progress: Any) -> None:
        nonlocal last, first
        now, done = time.perf_counter(), progress.rows - progress.left
        first = done if first < 0 else first
        if now - last < (_OFTEN if terminal else _SELDOM):
            return
        last = now
        line = f"{done}/{progress.rows} answers  {progress.tokens / (now - start):.0f} tokens/s"
        if done > first:
            seconds = int((now - start) / (done - first) * progress.left)
            line += f"  ETA {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        print(line, end="\r" if terminal else "\n", file=sys.stderr, flush=True)

    return told
