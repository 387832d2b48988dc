"""From a policy and prompts to a preference file: answers, verdicts, pairs, and where each came from.

A row of pairs.jsonl is raw text, to the last control token what the policy read and wrote, with its provenance.
Not here: the rules of choice (pairs.py), DPO.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.verifiable import RLAIFConfig
from train.verifiable import answers, pairs, verdicts
from train.verifiable.files import Key, Lines, read_rows, write_json, write_rows
from train.verifiable.models import Models
from train.verifiable.prompts import Prompt

# Characters of a reason that count.
_REASON = 100

Rows = Mapping[Key, Mapping[str, Any]]


def gather(
    here: Path,
    number: int,
    policy: Path,
    prompts: Sequence[Prompt],
    config: RLAIFConfig,
    models: Models,
) -> list[Any]:
    """Rows of the preference file of round `number`, made in the folder `here` if they are not there."""
    file = here / "pairs.jsonl"
    if file.exists():
        return read_rows(file)
    sampling, model = config.sampling, models.fingerprint(policy)
    how = answers.asking(policy, sampling)
    settings = {
        name: value
        for name, value in asdict(sampling).items()
        if name not in ("max_slots", "max_tokens") and not name.startswith("evaluation_")
    }
    with Lines(here / "samples.jsonl", {"model": model, "round": number, **settings}) as said:
        wanted = answers.asked(prompts, sampling.samples, config.seed, number)
        if len(said.rows) < len(wanted):
            what = f"round {number}: answers"
            heat = sampling.temperature
            answers.collect(models.load(policy), wanted, said, how, sampling, heat, what)
    with Lines(here / "verdicts.jsonl", {"model": model, "round": number}) as judged:
        what, workers = f"round {number}: verdicts", config.verify.workers
        verdicts.judge(prompts, how, said.rows, judged, workers, what)
    groups = [
        (p.id, len(how.ids(p)), _answers(p.id, said.rows, judged.rows, sampling.samples))
        for p in prompts
    ]
    choice = pairs.choose(groups, config.pairs, config.data.max_length)
    kinds = {prompt.id: prompt.kind for prompt in prompts}
    by_id = {prompt.id: prompt for prompt in prompts}
    rows = [
        {
            "prompt": how.text(by_id[pair.prompt]),
            "chosen": pair.chosen.text,
            "rejected": pair.rejected.text,
            "provenance": {
                "prompt": pair.prompt,
                "verifier": kinds[pair.prompt],
                "round": number,
                "model": model,
                "sampling": settings,
                "chosen": _side((pair.prompt, pair.chosen.sample), said.rows, judged.rows),
                "rejected": _side((pair.prompt, pair.rejected.sample), said.rows, judged.rows),
            },
        }
        for pair in choice.pairs
    ]
    write_json(here / "pairs.json", _summary(choice, kinds, judged.rows))
    write_rows(file, rows)
    return rows


def _answers(prompt: str, said: Rows, judged: Rows, count: int) -> list[pairs.Answer]:
    """Answers to a prompt as the choice sees them."""
    found = []
    for sample in range(count):
        row, verdict = said[prompt, sample], judged.get((prompt, sample))
        failed = "refused" if "error" in row else ""
        if not failed and row["finish_reason"] != "stop":
            failed = "truncated"
        found.append(
            pairs.Answer(
                sample=sample,
                text=row.get("text", "") + row.get("end", ""),
                length=len(row.get("ids", ())),
                right=None if verdict is None else verdict["right"],
                failed=failed,
            )
        )
    return found


def _side(key: Key, said: Rows, judged: Rows) -> dict[str, Any]:
    """Where one answer of a pair came from, and what was said of it."""
    row, verdict = said[key], judged[key]
    return {
        **{name: row[name] for name in ("sample", "seed", "logprob")},
        "tokens": len(row["ids"]),
        **{name: verdict[name] for name in ("score", "right", "reason")},
    }


def _summary(choice: pairs.Choice, kinds: Mapping[str, str], judged: Rows) -> dict[str, Any]:
    """Counts and means for the report. right, answers: of all answers that were judged, by kind of verifier."""
    kept = choice.pairs
    told: dict[str, Counter[str]] = {kind: Counter() for kind in dict.fromkeys(kinds.values())}
    for (prompt, _), row in judged.items():
        told[kinds[prompt]]["answers"] += 1
        told[kinds[prompt]]["right"] += bool(row["right"])
    # Of one kind are reasons that differ in their numbers alone.
    reasons = Counter(
        re.sub(r"\d+", "#", row["reason"])[:_REASON] for row in judged.values() if not row["right"]
    )
    count = max(len(kept), 1)
    return {
        "pairs": len(kept),
        "pairs by verifier": dict(Counter(kinds[pair.prompt] for pair in kept)),
        "prompts": dict(choice.prompts),
        "answers": dict(choice.answers),
        "right": {kind: dict(counts) for kind, counts in told.items()},
        "wrong because": dict(reasons.most_common(20)),
        "tokens of chosen": sum(pair.chosen.length for pair in kept) / count,
        "tokens of rejected": sum(pair.rejected.length for pair in kept) / count,
    }
