"""Logs of Inspect: written and read back by inspect_ai itself, where it is installed."""

import subprocess
import sys

import pytest

from eval import export_inspect
from eval.outputs import write_results
from gemma4_jax.errors import UserError
from tests.eval.made_runs import answers, source, write_run

ROWS = [["0", "0", "0", "0"], ["2", "3", "3", "2"], ["5", None, None, "5"]]


def test_a_run_reads_back(tmp_path, capsys):
    log = pytest.importorskip("inspect_ai.log")
    write_run(tmp_path, answers(ROWS))
    (results,) = write_results(tmp_path, {"sums": source()})
    export_inspect.main([str(tmp_path)])
    file = capsys.readouterr().out.strip()
    got = log.read_eval_log(file)
    assert (got.status, got.eval.task, got.eval.model) == (
        "success",
        "sums",
        "gemma4_jax/gemma-4-E2B-it",
    )
    assert got.eval.config.epochs == 4
    assert got.eval.model_generate_config.temperature == 1.0
    metrics = {name: metric.value for name, metric in got.results.scores[0].metrics.items()}
    assert metrics["avg@4"] == 0.5 and metrics["pass@4"] == pytest.approx(2 / 3)
    assert metrics["stderr"] == pytest.approx(results.standard_error)
    assert len(got.samples) == 12
    one = log.read_eval_log_sample(file, id="q1", epoch=1)
    assert one.input[0].text == "1 + 1?"
    assert one.output.choices[0].message.content[0].reasoning == "hm 0"
    assert one.output.completion == "2"
    score = one.scores["gemma4_jax"]
    assert (score.value, score.answer, score.explanation) == (1.0, "2", None)
    cut = log.read_eval_log_sample(file, id="q2", epoch=2)
    assert cut.output.stop_reason == "max_tokens" and cut.scores["gemma4_jax"].answer is None
    usage = got.stats.model_usage[got.eval.model]
    assert (usage.input_tokens, usage.reasoning_tokens) == (60, 300)
    assert [entry.name for entry in log.list_eval_logs(str(tmp_path / "inspect"))]


def test_without_inspect_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(UserError, match=r"gemma4_jax\[inspect\]"):
        export_inspect.write_logs(tmp_path, tmp_path)


def test_nothing_else_needs_inspect_or_jax():
    """Reading a run's numbers must not wait for an array library."""
    code = (
        "import sys, eval.outputs, eval.compare, eval.export_inspect\n"
        "print([name for name in ('jax', 'inspect_ai', 'lm_eval', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
