"""Rounds of verified preferences on one machine: `python -m examples.verifiable_loop.demo` (`make demo-loop`).

A tiny Gemma 4 learns word problems and tool calls from demonstrations of which half are wrong, so it is right
about half the time. Then `train.rlaif`: it answers prompts, answers are verified (the number; the call
against the tool's JSON schema and the request), right ones are preferred to wrong ones, and accuracy on
held-out prompts is measured after every round. The same command after an interruption goes on where it stopped.

Here: the order of events. Sizes are in recipe.py.
"""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from examples.arithmetic.problems import Problem, distinct, problems
from examples.folder import open_folder, rows_of, write_rows, write_text
from examples.narration import Narration
from examples.running import Stopped, command_line, train_once
from examples.tiny import twin
from examples.verifiable_loop.recipe import SETS, Recipe, loop_config, sft_config
from examples.verifiable_loop.requests import distinct_calls, requests
from examples.verifiable_loop.slips import demonstrations
from gemma4_jax.compiled_programs import keep_compiled_programs
from gemma4_jax.hf_config import config_to_hf
from gemma4_jax.text import chat
from gemma4_jax.text.train_tokenizer import train_tokenizer
from train import sft
from train.verifiable import rounds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    keep_compiled_programs()
    return command_line(
        "python -m examples.verifiable_loop.demo",
        "A tiny Gemma 4 unlearns its slips by rounds of verified preferences.",
        "runs/verifiable_loop",
        lambda seed, path, *, fresh: run(Recipe(seed=seed), path, fresh=fresh),
        argv,
    )


def run(recipe: Recipe, path: Path, *, fresh: bool = False) -> None:
    """Everything from random weights to the report in `path`."""
    folder = open_folder(path, recipe.fingerprint(), fresh)
    narration = Narration(parts=3)
    narration.part("demonstrations, prompts with verifiers, a vocabulary")
    _prepare(recipe, folder, narration)
    narration.part(f"SFT on demonstrations of which {recipe.slips:.0%} are wrong")
    to_sft = sft_config(recipe, folder)
    train_once(to_sft.run.workdir, lambda: sft.run(to_sft), narration.say)
    narration.part(f"{recipe.rounds} rounds of verified preferences")
    if code := rounds.run(loop_config(recipe, folder)):
        raise Stopped(code)
    narration.end()
    for title, wall, cpu in narration.seconds:
        narration.say(f"  {title}: {wall:.0f} s, {cpu:.0f} CPU-s")
    narration.say(f"\n{(folder / 'loop' / 'report.md').read_text()}")
    narration.say(f"  done in {narration.clock}; report {folder / 'loop' / 'report.html'}")


def _prepare(recipe: Recipe, folder: Path, narration: Narration) -> None:
    """Rows, prompts, the vocabulary and the model's configuration, as files."""
    rows = rows_of(
        folder / "sft.jsonl",
        lambda: demonstrations(recipe.sft_rows, recipe.slips, recipe.seed, recipe.calls_every),
    )
    texts = [
        chat.render(
            row["messages"],
            tools=row.get("tools"),
            enable_thinking="tools" not in row,
            add_generation_prompt=False,
        )
        for row in rows[:3000]
    ]
    tokenizer = train_tokenizer(texts, recipe.vocab_size, folder / "tokenizer.model")
    write_text(
        folder / "model.json", json.dumps(config_to_hf(twin(tokenizer.vocab_size)), indent=2)
    )
    # Another seed than SFT's: the training side of the split, most of it new to the model.
    seed = recipe.seed + 1_000_003
    sums, asked = problems("train", seed), requests("train", seed)
    prompts = []
    for number in range(recipe.rounds):
        prompts += [
            _prompt_row(problem, f"problem {number}.{i}")
            for i, problem in enumerate(islice(sums, recipe.problems))
        ]
        prompts += [
            request.prompt_row(f"request {number}.{i}")
            for i, request in enumerate(islice(asked, recipe.requests))
        ]
    write_rows(folder / "prompts.jsonl", prompts)
    held_out = distinct("held-out", recipe.held_out, recipe.seed)
    calls = distinct_calls("held-out", recipe.held_out, recipe.seed)
    arithmetic, tools = (folder / f"{name}.jsonl" for name in SETS)
    write_rows(arithmetic, [_prompt_row(p, f"problem {i}") for i, p in enumerate(held_out)])
    write_rows(tools, [r.prompt_row(f"request {i}") for i, r in enumerate(calls)])
    narration.say(f"  {len(rows)} demonstrations, {len(prompts)} prompts; two of them:")
    narration.say(f"\n{texts[0]}\n\n{texts[recipe.calls_every - 1]}")


def _prompt_row(problem: Problem, name: str) -> dict[str, object]:
    return {
        "id": name,
        "messages": problem.prompt,
        "thinking": True,
        "verifier": {"kind": "number", "answer": problem.answer},
    }


if __name__ == "__main__":
    raise SystemExit(main())
