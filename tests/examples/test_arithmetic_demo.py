"""A miniature of `make demo`: every stage for real, at a size that learns nothing."""

import json
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from examples.arithmetic.answers import judge, make_pairs
from examples.arithmetic.demo import run
from examples.arithmetic.problems import problems
from examples.arithmetic.recipe import Recipe
from examples.arithmetic.summary import Stage
from examples.folder import open_folder, write_rows
from gemma4_jax.checkpoint import load
from gemma4_jax.errors import UserError

pytestmark = pytest.mark.slow

MINI = Recipe(
    vocab_size=400, sft_rows=200, sft_batch=2, sft_steps=3, held_out=6, pair_problems=4, samples=2,
    dpo_batch=4, dpo_epochs=1.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Stage]]]:
    """A demo run to its end. Its model knows nothing, so the pairs are written for it."""
    folder = open_folder(tmp_path_factory.mktemp("demo") / "run", MINI.fingerprint(), fresh=False)
    answers = []
    for problem in islice(problems("train", 5), 12):
        for content in (problem.answer, "77"):
            text = f"<|channel>thought\n{problem.thought}\n<channel|>{content}"
            answers.append(judge(problem, text, stopped=True))
    write_rows(folder / "pairs.jsonl", make_pairs(answers))
    yield folder, run(MINI, folder)


def test_every_stage_answers_the_same_held_out_problems(
    finished: tuple[Path, list[Stage]],
) -> None:
    _, stages = finished
    assert [stage.name for stage in stages] == ["untrained", "SFT", "DPO"]
    chains = {tuple(answer.chain for answer in stage.answers) for stage in stages}
    assert len(chains) == 1
    assert len(chains.pop()) == MINI.held_out


def test_both_runs_trained_and_left_plots_and_models(finished: tuple[Path, list[Stage]]) -> None:
    folder, _ = finished
    # Before the first update: worse than ln(400) = 6.0, and exactly ln 2.
    for name, lowest, highest in (("sft", 5.9, 9.0), ("dpo", 0.6930, 0.6933)):
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
        assert lowest < rows[0]["loss"] < highest
        assert (folder / name / "metrics.png").stat().st_size > 1000
    before, after = (load(folder / name / "huggingface").params for name in ("sft", "dpo"))
    assert (before["embed"]["table"] != after["embed"]["table"]).any()


def test_the_report_has_plots_dialogues_and_the_command(
    finished: tuple[Path, list[Stage]],
) -> None:
    folder, stages = finished
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "$ gemma4 generate" in page and "tokens/s" in page
    for answer in stages[0].answers[:3]:
        assert answer.question in page


def test_a_second_run_repeats_nothing(
    finished: tuple[Path, list[Stage]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, stages = finished
    kept = {
        path: path.stat().st_mtime_ns
        for pattern in ("eval/generations.jsonl", "*/checkpoints/*", "*/huggingface/*")
        for path in folder.glob(pattern)
    }
    assert len(kept) > 6
    assert run(MINI, folder) == stages
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert capsys.readouterr().out.count("finished before") == 2


def test_another_recipe_is_refused(finished: tuple[Path, list[Stage]]) -> None:
    with pytest.raises(UserError, match="made with other settings"):
        run(Recipe(seed=1), finished[0])


def test_a_model_that_is_never_right_gets_no_dpo_and_a_report_all_the_same(
    finished: tuple[Path, list[Stage]], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished[0], tmp_path / "copy")
    (folder / "pairs.jsonl").unlink()
    shutil.rmtree(folder / "dpo")
    stages = run(MINI, folder)
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 8
    assert [stage.name for stage in stages] == ["untrained", "SFT"]
    assert (folder / "report.html").read_text().count("data:image/png;base64,") == 1
