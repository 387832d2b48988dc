"""All that a scored run leaves beside its generations and verdicts.

results.json    every number (results.py)
report.html     the same for people, with every sample (report.py)
lm_eval/        the same in lm-evaluation-harness's layout (lm_eval_files.py)

write_results(folder, sources)
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval.asks import digest
from eval.judged import CellKey, Judged, read_folder
from eval.lm_eval_files import write_lm_eval
from eval.report import report, write_text
from eval.results import Results, write_json
from eval.summarize import Source, summarize_all
from eval.task import Item, Protocol
from gemma4_jax.errors import UserError


def write_results(folder: Path, sources: Mapping[str, Source]) -> list[Results]:
    """Write all of the above from a folder's generations and verdicts; returns the numbers.

    sources: by name of the benchmark. What run.json says of models, versions and starts goes into results.json.
    Writing again replaces everything. Raises UserError for a folder without judged samples.
    """
    everything, without = read_folder(folder)
    if not everything:
        raise UserError(f"{folder} has no judged samples; run the benchmarks, then score them")
    items = {name: {item.id: item for item in of.items} for name, of in sources.items()}
    judged = [one for one in everything if _is_asked(one, sources, items)]
    run = {**_about(folder), "generations_without_verdict": without}
    run["generations_of_other_prompts"] = len(everything) - len(judged)
    results = summarize_all(sources, judged, _planned(run))
    models = list(run.get("models", ()))
    results.sort(
        key=lambda r: (
            r.task,
            models.index(r.model) if r.model in models else -1,
            r.protocol,
            json.dumps(r.settings, sort_keys=True),
        )
    )
    write_json(folder / "results.json", results, run)
    write_text(
        folder / "report.html",
        report(f"Evaluation {folder.resolve().name}", results, run, judged),
    )
    # Of the generations, not of now: scoring again gives the same names.
    when = time.gmtime((folder / "generations.jsonl").stat().st_mtime)
    shutil.rmtree(folder / "lm_eval", ignore_errors=True)
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", when)
    write_lm_eval(folder / "lm_eval", stamp, results, run, judged, sources)
    return results


def _is_asked(
    one: Judged, sources: Mapping[str, Source], items: Mapping[str, Mapping[str, Item]]
) -> bool:
    """Whether the benchmark asks so now: after a change of its prompts a folder may have answers to both."""
    made = one.generation
    item = items.get(made.task, {}).get(made.item)
    if item is None:
        return True  # what has no data is named where it is added up
    protocol: Protocol = "reference" if made.protocol == "reference" else "thinking"
    asked = sources[made.task].task.prompt(item, made.sample, protocol)
    return digest([dict(message) for message in asked]) == digest(made.messages)


def _planned(run: Mapping[str, Any]) -> dict[CellKey, int]:
    """Samples that the run meant to have, by cell."""
    planned = {}
    for cell in run.get("cells", ()):
        settings = json.dumps(cell["settings"], sort_keys=True)
        key = CellKey(cell["task"], cell["model"], cell["protocol"], settings)
        planned[key] = int(cell["answers"])
    return planned


def _about(folder: Path) -> dict[str, Any]:
    file = folder / "run.json"
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text("utf-8")))
    except ValueError:
        raise UserError(f"{file} is damaged; delete it and start the run again") from None
