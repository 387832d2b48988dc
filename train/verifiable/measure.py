"""How good a policy is on prompts that it never learns from, and how far it has gone from the start.

Accuracy: answers to each held-out prompt, from the same seeds in every round. Drift: of the first answer to
each, the mean of log p(policy) - log p(start), in nats an answer. Drawn at temperature 1 without filters that
is an estimate of the KL divergence from the start; filters and other temperatures bias it, by as much in every
round. Not here: comparing rounds (report.py).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.verifiable import RLAIFConfig
from gemma4_jax.sample.scoring import prompt_logprobs
from gemma4_jax.verify.clusters import clustered
from train.verifiable import answers, verdicts
from train.verifiable.files import Lines, read_json, read_rows, write_json
from train.verifiable.models import Models
from train.verifiable.pace import Pace
from train.verifiable.prompts import PromptFile

# Answers that are scored between two writes.
_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """What is measured: the model in the folder `policy`, for its distance that in `start`.

    what: it is, for lines of progress.
    """

    config: RLAIFConfig
    models: Models
    policy: Path
    start: Path
    what: str


def measure(folder: Path, held_out: Sequence[PromptFile], task: Measuring) -> dict[str, Any]:
    """Everything of one round, in `folder`; what is there is not made again."""
    summary = folder / "evaluation.json"
    if (found := read_json(summary)) is None:
        sets = {file.name: _accuracy(folder, file, task) for file in held_out}
        gone = [each for file in held_out for each in _log_ratios(folder, file, task)]
        model = task.models.fingerprint(task.policy)
        found = {"model": model, "sets": sets, "drift": _drift(gone)}
        write_json(summary, found)
    return dict(found)


def _accuracy(folder: Path, file: PromptFile, task: Measuring) -> dict[str, Any]:
    sampling, what = task.config.sampling, f"{task.what}, {file.name}"
    each = sampling.evaluation_samples
    wanted = answers.asked(file.prompts, each, task.config.seed, "held out", file.name)
    how = answers.asking(task.policy, sampling)
    note = {"model": task.models.fingerprint(task.policy)}
    with Lines(folder / f"{file.name}.answers.jsonl", note) as said:
        if len(said.rows) < len(wanted):
            model, temperature = task.models.load(task.policy), sampling.evaluation_temperature
            answers.collect(model, wanted, said, how, sampling, temperature, what)
    with Lines(folder / f"{file.name}.verdicts.jsonl", note) as judged:
        workers = task.config.verify.workers
        verdicts.judge(file.prompts, how, said.rows, judged, workers, f"{what}, verdicts")
    shares = right_shares(folder, file, each)
    interval = clustered(shares, len(wanted))
    written = [row for row in said.rows.values() if "error" not in row]
    return {
        "prompts": len(file.prompts),
        "answers": len(wanted),
        "right": round(sum(shares) * each),
        "accuracy": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "truncated": sum(row["finish_reason"] == "length" for row in written),
        "unverifiable": sum(row["right"] is None for row in judged.rows.values()),
        "refused": len(wanted) - len(written),
        "tokens": sum(len(row["ids"]) for row in written) / max(len(written), 1),
    }


def right_shares(folder: Path, file: PromptFile, samples: int) -> list[float]:
    """Share of the `samples` answers to each held-out prompt that is right, in the order of the prompts.

    folder: of a round. An answer without a verdict, or with one that could not tell, counts as wrong.
    """
    right = Counter(
        row["prompt"] for row in read_rows(folder / f"{file.name}.verdicts.jsonl") if row["right"]
    )
    return [right[prompt.id] / samples for prompt in file.prompts]


def _log_ratios(folder: Path, file: PromptFile, task: Measuring) -> list[tuple[float, int]]:
    """(log p(policy) - log p(start), tokens) of the first answer to every prompt of a held-out set."""
    note = {"model": task.models.fingerprint(task.policy)}
    with Lines(folder / f"{file.name}.answers.jsonl", note) as said:
        first_ones = (row for row in said.rows.values() if row["sample"] == 0)
        written = [row for row in first_ones if "error" not in row]
    by_id = {prompt.id: prompt for prompt in file.prompts}
    how = answers.asking(task.start, task.config.sampling)
    note["start"] = task.models.fingerprint(task.start)
    with Lines(folder / f"{file.name}.reference.jsonl", note) as scored:
        missing = [row for row in written if (row["prompt"], row["sample"]) not in scored.rows]
        done = len(written) - len(missing)
        pace = Pace(f"{task.what}, {file.name}, under the start", len(written), done)
        for first in range(0, len(missing), _CHUNK):
            rows = missing[first : first + _CHUNK]
            texts = [how.ids(by_id[row["prompt"]]) + row["ids"] for row in rows]
            found = prompt_logprobs(task.models.load(task.start), texts)
            for row, logprobs in zip(rows, found, strict=True):
                total = round(sum(logprobs[-len(row["ids"]) :]), 4)
                scored.put({"prompt": row["prompt"], "sample": row["sample"], "logprob": total})
            done += len(rows)
            pace.at(done)
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
