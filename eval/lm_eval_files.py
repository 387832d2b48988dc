"""A run in the files that lm-evaluation-harness 0.4 leaves, so that what reads those reads these.

    lm_eval/MODEL/results_TIME.json           numbers by task and metric
    lm_eval/MODEL/samples_TASK_TIME.jsonl     a line a question: prompt, all samples, found answers, hashes

Layout as its evaluation_tracker.py and evaluator.py write it (0.4.13). The score is `exact_match` (`pass@1`
where programs run), always the mean over samples; the standard error is the one over questions. Not here:
running that harness on our models (lm_eval_adapter.py).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.browser import prompt_text
from eval.judged import CellKey, Judged, by_question, cells
from eval.report import mean_score, model_name, write_text
from eval.results import Results, key_of
from eval.summarize import Source

_FILTER = "none"


def write_lm_eval(
    folder: Path,
    time: str,
    results: Sequence[Results],
    run: Mapping[str, Any],
    judged: Sequence[Judged],
    sources: Mapping[str, Source],
) -> list[Path]:
    """Write under `folder`; returns the paths. time: of the run, ISO 8601 with "-" for ":", for the names."""
    samples = cells(judged)
    by_model: dict[str, list[Results]] = defaultdict(list)
    for r in results:
        by_model[r.model].append(r)
    written = []
    for fingerprint, rows in by_model.items():
        name = model_name(fingerprint, run)
        place = folder / re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)
        place.mkdir(parents=True, exist_ok=True)
        asked = Counter(r.task for r in rows)
        tables: dict[str, Any] = defaultdict(dict)
        for r in rows:
            source, found = sources[r.task], samples[key_of(r)]
            task = r.task if asked[r.task] == 1 else f"{r.task}_{_short(key_of(r))}"
            lines = _lines(r, source, found)
            for key, value in _tables(r, source, lines).items():
                tables[key][task] = value
            file = place / f"samples_{task}_{time}.jsonl"
            write_text(file, "".join(json.dumps(line) + "\n" for line in lines))
            written.append(file)
        document = {
            **tables,
            "group_subtasks": {task: [] for task in tables["results"]},
            "config": {
                "model": "gemma4_jax",
                "model_args": {"pretrained": name, "fingerprint": fingerprint},
            },
            "git_hash": run.get("git"),
            "date": time,
            "model_source": "gemma4_jax",
            "model_name": name,
            "model_name_sanitized": place.name,
        }
        file = place / f"results_{time}.json"
        write_text(file, json.dumps(document, indent=2) + "\n")
        written.append(file)
    return written


def target(data: Mapping[str, Any]) -> str:
    """The right answer of an item, where its data has one under a usual name; else "" (programs have
    none).
    """
    for name in ("answer", "target", "solution", "label"):
        if name in data:
            return str(data[name])
    return ""


def _metric(source: Source) -> str:
    return "pass@1" if source.task.runs_programs else "exact_match"


def _tables(r: Results, source: Source, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results_TIME.json says of a task, by section."""
    metric = _metric(source)
    numbers: dict[str, Any] = {
        "alias": r.task,
        f"{metric},{_FILTER}": r.score.estimate,
        f"{metric}_stderr,{_FILTER}": "N/A" if r.standard_error is None else r.standard_error,
    }
    names = [metric]
    for kind, rows in (("pass", r.pass_at_k), ("maj", r.majority_at_k)):
        for each in rows:
            if each.k > 1:
                names.append(f"{kind}@{each.k}")
                numbers[f"{kind}@{each.k},{_FILTER}"] = each.score.estimate
    hashes = "".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines)
    generation = {k: v for k, v in r.settings.items() if k != "stop"}
    return {
        "results": numbers,
        "configs": {
            "task": r.task,
            "dataset_path": str(r.data.get("path", "")),
            "dataset_kwargs": {"sha256": r.data.get("sha256")},
            "output_type": "generate_until",
            "repeats": r.samples_each[1],
            "generation_kwargs": {"until": list(r.settings.get("stop", ())), **generation},
            "metadata": {"version": 1, "protocol": r.protocol},
        },
        "versions": 1,
        "n-shot": 0,
        "higher_is_better": dict.fromkeys(names, True),
        "n-samples": {"original": len(source.items), "effective": r.questions},
        "task_hashes": _sha256(hashes),
    }


def _lines(r: Results, source: Source, judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """One line a question, in the order of the items."""
    questions, metric = by_question(judged), _metric(source)
    lines = []
    for number, item in enumerate(source.items):
        samples = questions.get(item.id)
        if not samples:
            continue
        doc = {"id": item.id, "category": item.category, **item.data}
        prompt, expected = prompt_text(samples[0].generation.messages), target(item.data)
        arguments = {
            "until": list(r.settings.get("stop", ())),
            **{k: v for k, v in r.settings.items() if k != "stop"},
        }
        lines.append(
            {
                "doc_id": number,
                "doc": doc,
                "target": expected,
                "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": arguments}},
                "resps": [[j.generation.text for j in samples]],
                "filtered_resps": [[j.extracted or "" for j in samples]],
                "filter": _FILTER,
                "metrics": [metric],
                "doc_hash": _sha256(json.dumps(doc, indent=2, ensure_ascii=False)),
                "prompt_hash": _sha256(prompt),
                "target_hash": _sha256(expected),
                metric: mean_score(samples),
                "scores": [j.score for j in samples],
            }
        )
    return lines


def _short(key: CellKey) -> str:
    return _sha256(json.dumps(key))[:8]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
