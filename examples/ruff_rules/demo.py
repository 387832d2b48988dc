"""SFT and DPO on real data: `python -m examples.ruff_rules.demo` (`make demo-real`).

The data are the rules of the ruff linter, their documented examples, and lines of Python's standard library
before and after ruff's own fix: the code that a rule asks for is chosen, the code that it complains about
rejected. A tiny Gemma 4 starts from random weights; preferences are measured on files that neither run has
seen, and on rules that neither has. Every number is measured in this run. The same command after an
interruption goes on where it stopped.

Here: the order of events. Sizes are in recipe.py, what is printed at the end in summary.py.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from examples.folder import open_folder, rows_of, write_text
from examples.narration import Narration
from examples.ruff_rules.fixes import Fix, choose, library_fixes
from examples.ruff_rules.margins import score
from examples.ruff_rules.recipe import (
    MEASURES,
    Recipe,
    dpo_config,
    held_out_file,
    sft_config,
    twin,
)
from examples.ruff_rules.rules import (
    code_rows,
    dpo_rows,
    installed_rules,
    read_rules,
    sft_rows,
    split,
)
from examples.ruff_rules.summary import Stage, print_results, write_report
from examples.running import command_line, train_once
from gemma4_jax.build import Model, build
from gemma4_jax.checkpoint import load
from gemma4_jax.hf_config import config_to_hf
from gemma4_jax.text import chat
from gemma4_jax.text.train_tokenizer import train_tokenizer
from train import dpo, sft
from train.start import open_start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return command_line(
        "python -m examples.ruff_rules.demo",
        "A tiny Gemma 4 learns to prefer what the rules of a linter ask for: SFT, then DPO.",
        "runs/ruff_rules",
        lambda seed, path, *, fresh: run(
            Recipe(seed=seed), path, installed_rules(), library_fixes(), fresh=fresh
        ),
        argv,
    )


def run(
    recipe: Recipe, path: Path, rules: str, fixes: Sequence[Fix], *, fresh: bool = False
) -> list[Stage]:
    """Everything from random weights to the report in `path`; returns the measured stages.

    rules: what `ruff rule --all --output-format json` prints. fixes: of real code.
    """
    folder = open_folder(path, recipe.fingerprint(rules, fixes), fresh)
    narration = Narration(parts=6)

    narration.part("rules, a vocabulary, and a model that knows nothing")
    _prepare(recipe, folder, rules, fixes, narration)
    start = open_start(sft_config(recipe, folder).model, recipe.seed, recipe.max_length)
    # The very weights that SFT will start from.
    untrained = build(start.config, start.load(), start.tokenizer)
    stages = [_measure("untrained", untrained, recipe, folder, narration)]

    narration.part("SFT on what the training rules say, and on code that follows them")
    to_sft = sft_config(recipe, folder)
    train_once(to_sft.run.workdir, lambda: sft.run(to_sft), narration.say)
    narration.part("held-out preferences after SFT")
    tuned = load(folder / "sft" / "huggingface")
    stages.append(_measure("SFT", tuned, recipe, folder, narration))

    narration.part("DPO: code that follows a rule chosen, code that does not rejected")
    to_dpo = dpo_config(recipe, folder)
    train_once(to_dpo.run.workdir, lambda: dpo.run(to_dpo), narration.say)
    narration.part("held-out preferences after DPO")
    final = folder / "dpo" / "huggingface"
    stages.append(_measure("DPO", load(final), recipe, folder, narration))

    narration.part("results")
    print_results(stages, narration)
    narration.end()
    report = write_report(recipe, folder, stages, narration.seconds)
    narration.say(f"\n  report            {report}\n  model             {final}")
    for name in ("sft", "dpo"):
        narration.say(f"  {name.upper()} run, loss plot {folder / name / 'metrics.png'}")
    narration.say(f"  done in {narration.clock}")
    return stages


def _prepare(
    recipe: Recipe, folder: Path, rules: str, fixes: Sequence[Fix], narration: Narration
) -> None:
    """Rows of both runs and of the measurements, the vocabulary, the model's configuration."""
    train, unseen = split(read_rules(rules))
    code, new_code = choose(fixes, train, recipe.fixes, recipe.held_out_fixes)
    rows = rows_of(folder / "sft.jsonl", lambda: sft_rows(train) + code_rows(code))
    pairs = rows_of(folder / "pairs.jsonl", lambda: dpo_rows(train) + dpo_rows(code))
    held_out = {"code": new_code, "rules": unseen}
    measured = {
        kind: rows_of(held_out_file(folder, kind), functools.partial(dpo_rows, kept))
        for kind, kept in held_out.items()
    }
    texts = [
        chat.render(row["messages"], family="small", add_generation_prompt=False) for row in rows
    ]
    tokenizer = train_tokenizer(texts, recipe.vocab_size, folder / "tokenizer.model")
    config = twin(tokenizer.vocab_size)
    write_text(folder / "model.json", json.dumps(config_to_hf(config), indent=2))
    narration.say(
        f"  {len(train)} rules to train on ({len(rows)} dialogues, {len(pairs)} pairs); held out: "
        + ", ".join(f"{len(measured[kind])} pairs of {title}" for kind, title in MEASURES.items())
    )
    narration.say(f"  a held-out pair: {json.dumps(measured['code'][0])}")


def _measure(name: str, model: Model, recipe: Recipe, folder: Path, narration: Narration) -> Stage:
    """One model on both sets of held-out pairs; computed only once."""
    scores = {
        kind: score(
            model,
            held_out_file(folder, kind),
            recipe.max_length,
            folder / "scores" / f"{name.lower()}-{kind}",
        )
        for kind in MEASURES
    }
    stage = Stage(name=name, scores=scores)
    for kind, title in MEASURES.items():
        narration.say(f"  {name}, {title}: {stage.line(kind)}")
    return stage


if __name__ == "__main__":
    raise SystemExit(main())
