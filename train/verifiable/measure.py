"""How good a policy is on prompts that it never learns from, and how far it has gone from the start.

Accuracy: one answer to each held-out prompt, from the same seed in every round. Drift: of those answers, the
mean of log p(policy) - log p(start), in nats an answer. Drawn at temperature 1 without filters that is an
estimate of the KL divergence from the start; filters and other temperatures bias it, by as much in every round.
Not here: comparing rounds (report.py).
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from configs.verifiable import RLAIFConfig
from gemma4_jax.build import Model
from gemma4_jax.sample.scoring import prompt_logprobs
from gemma4_jax.verify.intervals import wilson
from train.verifiable import answers, verdicts
from train.verifiable.files import Lines, read_json, write_json
from train.verifiable.pace import Pace
from train.verifiable.prompts import PromptFile

# Answers that are scored between two writes.
_CHUNK = 64

#: A model, loaded when it is first needed.
Loaded = Callable[[], Model]


def measure(
    folder: Path,
    held_out: Sequence[PromptFile],
    config: RLAIFConfig,
    policy: tuple[str, Loaded],
    start: tuple[str, Loaded],
    what: str,
) -> dict[str, Any]:
    """Everything of one round, in `folder`; what is there is not made again.

    policy, start: fingerprints of the models, and how to get them. what: is measured, for lines of progress.
    """
    summary = folder / "evaluation.json"
    if (found := read_json(summary)) is not None:
        return dict(found)
    sets, gone = {}, []
    for file in held_out:
        sets[file.name] = _accuracy(folder, file, config, policy, f"{what}, {file.name}")
    for file in held_out:
        gone += _log_ratios(folder, file, config, policy[0], start, f"{what}, {file.name}")
    write_json(summary, {"model": policy[0], "sets": sets, "drift": _drift(gone)})
    return dict(read_json(summary))


def _accuracy(
    folder: Path,
    file: PromptFile,
    config: RLAIFConfig,
    policy: tuple[str, Loaded],
    what: str,
) -> dict[str, Any]:
    sampling = config.sampling
    wanted = answers.asked(file.prompts, 1, config.seed, "held out", file.name)
    with Lines(folder / f"{file.name}.answers.jsonl", {"model": policy[0]}) as said:
        if len(said.rows) < len(wanted):
            temperature = sampling.evaluation_temperature
            answers.collect(policy[1](), wanted, said, sampling, temperature, what)
    with Lines(folder / f"{file.name}.verdicts.jsonl", {"model": policy[0]}) as judged:
        verdicts.judge(file.prompts, said.rows, judged, f"{what}, verdicts")
    n, right = len(wanted), sum(bool(row["right"]) for row in judged.rows.values())
    interval = wilson(right, n)
    written = [row for row in said.rows.values() if "error" not in row]
    return {
        "n": n,
        "right": right,
        "accuracy": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "truncated": sum(row["finish_reason"] == "length" for row in written),
        "unverifiable": sum(row["right"] is None for row in judged.rows.values()),
        "refused": n - len(written),
        "tokens": sum(len(row["ids"]) for row in written) / max(len(written), 1),
    }


def _log_ratios(
    folder: Path,
    file: PromptFile,
    config: RLAIFConfig,
    policy: str,
    start: tuple[str, Loaded],
    what: str,
) -> list[tuple[float, int]]:
    """(log p(policy) - log p(start), tokens) of every answer to a held-out set."""
    with Lines(folder / f"{file.name}.answers.jsonl", {"model": policy}) as said:
        written = [row for row in said.rows.values() if "error" not in row]
    by_id = {prompt.id: prompt for prompt in file.prompts}
    note = {"model": policy, "start": start[0]}
    with Lines(folder / f"{file.name}.reference.jsonl", note) as scored:
        missing = [row for row in written if (row["prompt"], row["sample"]) not in scored.rows]
        pace = Pace(f"{what}, under the start", len(written), len(written) - len(missing))
        for first in range(0, len(missing), _CHUNK):
            rows, model = missing[first : first + _CHUNK], start[1]()
            tokenizer, family = model.tokenizer, model.config.family
            assert tokenizer is not None  # it wrote the answers
            texts = [
                answers.prompt_ids(tokenizer, family, by_id[row["prompt"]], config.sampling)
                + row["ids"]
                for row in rows
            ]
            found = prompt_logprobs(model, texts)
            for row, logprobs in zip(rows, found, strict=True):
                total = sum(logprobs[-len(row["ids"]) :])
                scored.put(
                    {"prompt": row["prompt"], "sample": row["sample"], "logprob": round(total, 4)}
                )
            pace.at(len(written) - len(missing) + first + len(rows))
    return [
        (row["logprob"] - scored.rows[row["prompt"], row["sample"]]["logprob"], len(row["ids"]))
        for row in written
    ]


def _drift(gone: Sequence[tuple[float, int]]) -> dict[str, Any]:
    """Mean over answers with its normal 95 % interval, and the mean per token."""
    if not gone:
        return {"answers": 0}
    values = [value for value, _ in gone]
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    half = 1.96 * math.sqrt(spread / len(values))
    return {
        "answers": len(values),
        "nats": mean,
        "low": mean - half,
        "high": mean + half,
        "nats_per_token": sum(values) / sum(length for _, length in gone),
    }
