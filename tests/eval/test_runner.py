"""The whole program with our engine: killed at random moments, it ends as if nothing had happened."""

import json
import os
import subprocess
import sys

import pytest

from eval import score
from eval.store import read

from .small_tasks import TASKS, write_items

pytestmark = pytest.mark.slow

KILLS, ITEMS, SAMPLES = 20, 5, 8
TOTAL = 2 * 4 * ITEMS * SAMPLES


def words_for(models, tasks, workdir):
    return [
        "quick", "--checkpoints", *map(str, models), "--tasks", *tasks, "--workdir", str(workdir),
        "--limit", "0", "--generation.samples", str(SAMPLES), "--generation.max-tokens", "24",
        "--model.dtype", "float32", "--model.max-slots", "8", "--model.max-tokens", "2048",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_items(tmp_path_factory.mktemp("data"), ITEMS)


class Drills:
    """Sweeps in processes of their own, which share compiled programs."""

    def __init__(self, repository, folder, models, tasks):
        self.repository, self.folder, self.models, self.tasks = repository, folder, models, tasks

    def run(self, name, kills):
        """The folder of a sweep that was killed so often, what its file held at each kill, and its log."""
        workdir, log = self.folder / name, self.folder / f"{name}.log"
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "DRILL_LOG": str(log),
            "DRILL_TOTAL": str(TOTAL),
        }
        store = workdir / "generations.jsonl"
        words = words_for(self.models, self.tasks, workdir)
        done = subprocess.run(
            [sys.executable, "-m", "tests.eval.drill", str(kills), "1", str(store), *words],
            cwd=self.repository,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert done.returncode == 0, done.stderr + log.read_text()
        found = json.loads(done.stdout)
        assert found["code"] == 0, log.read_text()
        return workdir, found["held"], log.read_text()


@pytest.fixture(scope="module")
def drills(repository, model_folders, tasks, tmp_path_factory):
    return Drills(repository, tmp_path_factory.mktemp("drills"), model_folders, tasks)


@pytest.fixture(scope="module")
def undisturbed(drills):
    """The folder of a sweep to which nothing happens."""
    workdir, held, _ = drills.run("undisturbed", 0)
    assert held == []
    return workdir


def generated(workdir):
    """Lines of the store by key, without what a clock says."""
    rows = {}
    for one in read(workdir / "generations.jsonl"):
        rows[one.key] = {**vars(one), "seconds": None}
    return rows


def scored(workdir):
    """Rows of the results, without what a clock says."""
    found = json.loads((workdir / "results.json").read_text())
    return [{**row, "seconds": None} for row in found["results"]]


def test_a_sweep_is_two_checkpoints_by_four_benchmarks(undisturbed, model_folders):
    rows = scored(undisturbed)
    run = json.loads((undisturbed / "run.json").read_text())
    names = {model: known["name"] for model, known in run["models"].items()}
    assert [(row["task"], names[row["model"]]) for row in rows] == [
        (task, folder.name) for task in TASKS for folder in model_folders
    ]
    assert {(row["questions"], row["samples"], row["samples_asked"]) for row in rows} == {
        (5, 40, 40)
    }
    assert len({row["model"] for row in rows}) == 2
    assert len(generated(undisturbed)) == TOTAL
    assert run["starts"][0]["versions"]["jax"] and run["starts"][0]["git"]
    assert run["tasks"]["has_a"]["sha256"]


def test_a_run_says_how_busy_the_engine_was(undisturbed):
    """How busy it is in earnest is measured, not tested: docs/log.md."""
    speeds = json.loads((undisturbed / "results.json").read_text())["run"]["speed"]
    assert len(speeds) == 2
    for one in speeds:
        assert 0 < one["engine_busy"] <= 1
        assert one["rows_in_use"] > 0.5
        assert one["tokens"] > 100


def test_scoring_again_without_a_model_changes_nothing(undisturbed, capsys):
    before = (undisturbed / "results.json").read_text()
    verdicts = {file: file.read_text() for file in (undisturbed / "verdicts").iterdir()}
    for file in verdicts:
        file.unlink()
    assert score.score(undisturbed, TASKS) == 0
    assert (undisturbed / "results.json").read_text() == before
    assert {file: file.read_text() for file in verdicts} == verdicts
    assert capsys.readouterr().out.count("step-1") == 4


def test_killed_at_20_random_moments_it_ends_as_undisturbed(undisturbed, drills):
    """Real processes with the engine in them, ended by SIGKILL; at every third kill a torn line is left too."""
    workdir, at_kills, log = drills.run("killed", KILLS)
    assert len(at_kills) >= KILLS - 3, "attempts were over before they could be killed"
    # Whatever was there at a kill is there in the end, as it was, and once: nothing lost, nothing repeated.
    lines = (workdir / "generations.jsonl").read_bytes().splitlines(keepends=True)
    for held in at_kills:
        whole = [line for line in held.encode().splitlines(keepends=True) if line.endswith(b"\n")]
        assert lines[: len(whole)] == whole
    sizes = [held.count("\n") for held in at_kills]
    assert len(set(sizes)) > KILLS // 2, sizes
    assert len(lines) == TOTAL
    assert generated(workdir) == generated(undisturbed)
    assert scored(workdir) == scored(undisturbed)
    assert "cut off" in log
