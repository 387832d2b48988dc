"""A run as logs of Inspect (inspect.aisi.org.uk), for `inspect view`: one .eval file for each row of the
results.

    python -m eval.export_inspect FOLDER [--out FOLDER/inspect]        # needs the extra: inspect

Samples of a question are its epochs; thoughts are kept apart from answers; our numbers stand as the log's
metrics. Written through inspect_ai's own types. Not here: running benchmarks by it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.judged import Judged, by_question, cells, read_folder
from eval.report import model_name
from eval.results import Results, key_of, read_json
from gemma4_jax.errors import UserError, report_user_errors

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample

_SCORER = "gemma4_jax"


def write_logs(folder: Path, out: Path) -> list[Path]:
    """Write a scored run's logs under `out`; returns their paths. UserError if inspect_ai is not
    installed.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise UserError(
            'this needs inspect_ai; install the extra: pip install "gemma4_jax[inspect]"'
        ) from None
    results, run = read_json(folder / "results.json")
    judged, _ = read_folder(folder)
    samples = cells(judged)
    when = time.strftime(
        "%Y-%m-%dT%H:%M:%S+00:00", time.gmtime((folder / "generations.jsonl").stat().st_mtime)
    )
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for r in results:
        key = key_of(r)
        name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        file = out / f"{when.replace(':', '-')}_{r.task.replace('_', '-')}_{name}.eval"
        write_eval_log(log(r, samples[key], model_name(r.model, run), when, name), str(file))
        written.append(file)
    return written


def log(r: Results, judged: Sequence[Judged], model: str, when: str, name: str) -> EvalLog:
    """One row of the results as a log. model: what to call it; when: ISO 8601; name: unique among logs."""
    from inspect_ai.log import (
        EvalConfig,
        EvalDataset,
        EvalLog,
        EvalMetric,
        EvalResults,
        EvalScore,
        EvalSpec,
        EvalStats,
    )
    from inspect_ai.model import GenerateConfig, ModelUsage

    questions = by_question(judged)
    settings = r.settings
    metrics: dict[str, Any] = {r.name: r.score.estimate, "low": r.score.low, "high": r.score.high}
    metrics["stderr"] = r.standard_error
    metrics |= {f"pass@{a.k}": a.score.estimate for a in r.pass_at_k if a.k > 1}
    metrics |= {f"maj@{a.k}": a.score.estimate for a in r.majority_at_k}
    score = EvalScore(
        name=_SCORER,
        scorer=_SCORER,
        scored_samples=r.samples,
        metrics={
            n: EvalMetric(name=n, value=v)
            for n, v in {**metrics, **r.summary}.items()
            if v is not None
        },
    )
    spec = EvalSpec(
        created=when,
        eval_id=name,
        run_id=name,
        task_id=name,
        task=r.task,
        task_display_name=r.title,
        dataset=EvalDataset(
            name=r.task,
            location=str(r.data.get("path", "")) or None,
            samples=len(questions),
            sample_ids=list(questions),
            shuffled=False,
        ),
        model=f"gemma4_jax/{model}",
        model_generate_config=GenerateConfig(
            temperature=settings.get("temperature"),
            top_p=settings.get("top_p"),
            top_k=settings.get("top_k"),
            max_tokens=settings.get("max_tokens"),
            stop_seqs=list(settings.get("stop", ())) or None,
        ),
        config=EvalConfig(epochs=r.samples_each[1]),
        metadata={
            "protocol": r.protocol,
            "fingerprint": r.model,
            "settings": dict(settings),
            **r.data,
        },
    )
    usage = ModelUsage()
    for j in judged:
        usage += _usage(j)
    return EvalLog(
        status="success",
        eval=spec,
        results=EvalResults(
            total_samples=r.samples_asked, completed_samples=r.samples, scores=[score]
        ),
        stats=EvalStats(started_at=when, completed_at=when, model_usage={spec.model: usage}),
        samples=[
            _sample(j, epoch, spec.model)
            for found in questions.values()
            for epoch, j in enumerate(found, 1)
        ],
    )


def _sample(judged: Judged, epoch: int, model: str) -> EvalSample:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        ChatMessageSystem,
        ChatMessageUser,
        ContentReasoning,
        ContentText,
        ModelOutput,
    )
    from inspect_ai.scorer import Score

    g = judged.generation
    kinds = {
        "system": ChatMessageSystem,
        "user": ChatMessageUser,
        "assistant": ChatMessageAssistant,
    }
    asked = [kinds[m["role"]](content=_text(m["content"])) for m in g.messages]
    content = [ContentText(text=g.answer)]
    if g.thought is not None:
        content.insert(0, ContentReasoning(reasoning=g.thought))
    said = ChatMessageAssistant(content=content, model=model, source="generate")
    reason = "max_tokens" if g.truncated else "stop"
    usage = _usage(judged)
    return EvalSample(
        id=g.item,
        epoch=epoch,
        input=asked,
        target="",
        messages=[*asked, said],
        output=ModelOutput(
            model=model,
            choices=[ChatCompletionChoice(message=said, stop_reason=reason)],
            usage=usage,
            time=g.seconds,
        ),
        scores={
            _SCORER: Score(
                value=judged.score,
                answer=judged.extracted,
                explanation=judged.note or None,
                metadata=dict(judged.details) or None,
            )
        },
        metadata={
            "category": judged.category,
            "seed": g.seed,
            "unfinished_thought": g.unfinished_thought,
            "key": g.key,
        },
        model_usage={model: usage},
        total_time=g.seconds,
        uuid=g.key,
    )


def _usage(judged: Judged) -> Any:
    from inspect_ai.model import ModelUsage

    g = judged.generation
    written = g.thought_tokens + g.answer_tokens
    return ModelUsage(
        input_tokens=g.prompt_tokens,
        output_tokens=written,
        total_tokens=g.prompt_tokens + written,
        reasoning_tokens=g.thought_tokens,
    )


def _text(content: Any) -> str:
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m eval.export_inspect", description="A scored run as logs of Inspect."
    )
    parser.add_argument("folder", type=Path, help="folder of a run that was scored")
    parser.add_argument("--out", type=Path, help="where to (FOLDER/inspect)")
    arguments = parser.parse_args(argv)
    with report_user_errors():
        for file in write_logs(arguments.folder, arguments.out or arguments.folder / "inspect"):
            print(file)


if __name__ == "__main__":
    main()
