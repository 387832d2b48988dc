"""The whole chain on one machine: `python -m examples.arithmetic.demo` (`make demo`).

A tiny Gemma 4 starts from random weights, learns worked word problems by SFT, answers problems it
has never seen, is aligned with DPO on its own right and wrong answers, is exported, and is sampled
from the export by the command line. Nothing is scripted: every number is measured in this run. The
same command after an interruption goes on where it stopped.

Here: the order of events. Sizes are in recipe.py, what is printed at the end in summary.py.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from examples.arithmetic.answers import Answer, ask, make_pairs
from examples.arithmetic.benchmark import measure
from examples.arithmetic.problems import Problem, distinct, problems
from examples.arithmetic.recipe import Recipe, dpo_config, sft_config
from examples.arithmetic.summary import Stage, print_results, write_report
from examples.folder import open_folder, rows_of, write_rows, write_text
from examples.narration import Narration
from examples.running import command_line, train_once
from examples.tiny import twin
from gemma4_jax.build import build
from gemma4_jax.checkpoint import load, save_huggingface
from gemma4_jax.errors import UserError
from gemma4_jax.hf_config import config_to_hf
from gemma4_jax.text import chat
from gemma4_jax.text.train_tokenizer import train_tokenizer
from train import dpo, sft
from train.start import open_start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command_line(
        "python -m examples.arithmetic.demo",
        "A tiny Gemma 4 learns arithmetic word problems: SFT, DPO, export, sampling.",
        "runs/arithmetic",
        lambda seed, path, *, fresh: run(Recipe(seed=seed), path, fresh=fresh),
        argv,
    )


def run(recipe: Recipe, path: Path, *, fresh: bool = False) -> list[Stage]:
    """Everything from random weights to the report in `path`; returns the measured stages."""
    folder = open_folder(path, recipe.fingerprint(), fresh)
    narration = Narration(parts=8)
    narration.part("problems, a vocabulary, and a model that knows nothing")
    held_out = distinct("held-out", recipe.held_out, recipe.seed)
    _prepare(recipe, folder, narration)
    stages = [_measure("untrained", recipe, folder, held_out, narration)]

    narration.part(f"SFT: {recipe.sft_steps} steps on worked problems")
    to_sft = sft_config(recipe, folder)
    train_once(to_sft.run.workdir, lambda: sft.run(to_sft), narration.say)
    narration.part("the same held-out problems after SFT")
    stages.append(_measure("SFT", recipe, folder, held_out, narration))

    narration.part(
        f"{recipe.samples} samples each of {recipe.pair_problems} training problems, "
        "judged: right against wrong"
    )
    pairs = rows_of(
        folder / "pairs.jsonl", lambda: make_pairs(_own_answers(recipe, folder, narration))
    )
    narration.say(f"  {len(pairs)} pairs of a right and a wrong answer to one problem")
    if pairs:
        narration.say(f"  for example: {json.dumps(pairs[0])}")
        narration.part("DPO on these pairs")
        to_dpo = dpo_config(recipe, folder, len(pairs))
        train_once(to_dpo.run.workdir, lambda: dpo.run(to_dpo), narration.say)
        narration.part("the same held-out problems after DPO")
        stages.append(_measure("DPO", recipe, folder, held_out, narration))
    else:
        narration.say("  the model is always right or always wrong: nothing to prefer, no DPO")

    narration.part("the exported folder, asked through the command line")
    final = folder / ("dpo" if pairs else "sft") / "huggingface"
    transcripts = [_ask_command(final, problem, narration) for problem in held_out[:2]]

    narration.part("results")
    print_results(stages, narration)
    narration.end()
    report = write_report(recipe, folder, stages, pairs, transcripts, narration.seconds)
    narration.say(f"\n  report            {report}\n  model             {final}")
    for name in ("sft", "dpo")[: 2 if pairs else 1]:
        narration.say(f"  {name.upper()} run, loss plot {folder / name / 'metrics.png'}")
    narration.say(
        f'\n  try it:  gemma4 generate {final} --think "{held_out[2].question}"'
        f"\n  done in {narration.clock}"
    )
    return stages


def _prepare(recipe: Recipe, folder: Path, narration: Narration) -> None:
    """Training rows, the vocabulary and the model's configuration, as files."""
    rows = rows_of(
        folder / "sft.jsonl",
        lambda: (p.row() for p in islice(problems("train", recipe.seed), recipe.sft_rows)),
    )
    texts = [
        chat.render(row["messages"], enable_thinking=True, add_generation_prompt=False)
        for row in rows[:3000]
    ]
    tokenizer = train_tokenizer(texts, recipe.vocab_size, folder / "tokenizer.model")
    config = twin(tokenizer.vocab_size)
    write_text(folder / "model.json", json.dumps(config_to_hf(config), indent=2))
    narration.say(
        f"  {len(rows)} training problems, {recipe.held_out} held out, no chain of operations in both"
    )
    narration.say(
        f"  vocabulary of {tokenizer.vocab_size}; {config.num_layers} layers "
        f"({', '.join(config.layer_types)}), the last {config.num_kv_shared_layers} without K/V of "
        f"their own, per-layer embeddings of {config.per_layer_input_width}"
    )
    narration.say(f"  one of them, as the model sees it:\n\n{texts[0]}")


def _measure(
    name: str, recipe: Recipe, folder: Path, held_out: list[Problem], narration: Narration
) -> Stage:
    """Greedy answers of one model to the held-out problems, through the runner of `eval`."""

    model = folder / name.lower() / "huggingface"
    if name == "untrained" and not model.is_dir():
        # The very weights that SFT will start from.
        start = open_start(sft_config(recipe, folder).model, recipe.seed, recipe.sft_length)
        save_huggingface(build(start.config, start.load(), start.tokenizer), model)
    stage = Stage(name=name, answers=measure(model, held_out, folder, recipe.seed))
    narration.say(f"  {name}: {stage.line()}")
    return stage


def _own_answers(recipe: Recipe, folder: Path, narration: Narration) -> list[Answer]:
    """Samples of the SFT model on training problems, kept beside the pairs made of them."""
    # Another seed than SFT's: problems of the training side, most of them new to the model.
    asked = list(islice(problems("train", recipe.seed + 1_000_003), recipe.pair_problems))
    model = load(folder / "sft" / "huggingface")
    answers = ask(
        model,
        asked,
        narration.say,
        samples=recipe.samples,
        temperature=recipe.temperature,
        seed=recipe.seed,
    )
    write_rows(folder / "samples.jsonl", (answer.row() for answer in answers))
    return answers


def _ask_command(model: Path, problem: Problem, narration: Narration) -> str:
    """`gemma4 generate` in a process of its own; returns what a terminal would show."""
    beside = Path(sys.executable).with_name("gemma4")
    program = str(beside) if beside.exists() else shutil.which("gemma4")
    words = [program] if program else [sys.executable, "-m", "gemma4_jax"]
    arguments = ["generate", str(model), problem.question, "--think"]
    shown = f'$ gemma4 generate {model} "{problem.question}" --think'
    narration.say(f"  {shown}")
    done = subprocess.run(
        [*words, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        check=False,
    )
    narration.say("\n".join(f"    {line}" for line in done.stdout.splitlines()))
    if done.returncode:
        raise UserError(f"gemma4 generate ended with exit code {done.returncode}; see above")
    narration.say(f"    (expected: {problem.answer})")
    return f"{shown}\n{done.stdout}(expected: {problem.answer})"


if __name__ == "__main__":
    raise SystemExit(main())
