"""The benchmark of docs/add_a_benchmark.md works as it stands there."""

import json
from dataclasses import replace

from configs.evals import EvalConfig, GenerationConfig
from eval.evaluate import evaluate

from .scripted import Scripted, reply


def test_the_worked_example(repository, tmp_path):
    text = (repository / "docs" / "add_a_benchmark.md").read_text()
    space: dict[str, object] = {}
    exec(text.split("```python\n")[1].split("```")[0], space)
    file = tmp_path / "capitals.jsonl"
    rows = [("France", "Paris", "Europe"), ("Peru", "Lima", "America")]
    file.write_text(
        "".join(json.dumps(dict(country=a, capital=b, continent=c)) + "\n" for a, b, c in rows)
    )
    config = EvalConfig(
        tasks=(f"capitals={file}",),
        workdir=str(tmp_path / "run"),
        generation=GenerationConfig(samples=1),
    )
    for protocol, answer in (("thinking", "So:\nAnswer: paris"), ("reference", "It is Paris.")):
        source = Scripted(lambda ask, answer=answer: reply(answer))
        one = replace(config, protocol=protocol)
        assert evaluate([one], [source], {"capitals": space["CAPITALS"]}) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert [(r["protocol"], r["score"]["estimate"]) for r in found] == [
        ("reference", 0.5),
        ("thinking", 0.5),
    ]
    assert {row["name"] for row in found[0]["categories"]} == {"America", "Europe"}
