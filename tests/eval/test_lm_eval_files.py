"""The layout that lm-evaluation-harness writes: names, fields, hashes; its own reader where it is there."""

import hashlib
import json

import pytest

from eval.outputs import write_results
from tests.eval.made_runs import answers, judged, source, write_run

ROWS = [["0", "0"], ["2", None], ["5", "5"]]
# Fields of a line as lm_eval/evaluator.py (0.4.13) fills them.
FIELDS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
    "prompt_hash", "target_hash",
}  # fmt: skip


def _write(folder, samples=None):
    write_run(folder, answers(ROWS) if samples is None else samples)
    write_results(folder, {"sums": source(4)})
    place = folder / "lm_eval" / "gemma-4-E2B-it"
    (results,), files = place.glob("results_*.json"), sorted(place.glob("samples_*.jsonl"))
    return json.loads(results.read_text()), [
        [json.loads(line) for line in file.read_text().splitlines()] for file in files
    ]


def test_results(tmp_path):
    results, _ = _write(tmp_path)
    row = results["results"]["sums"]
    assert row["exact_match,none"] == 0.5
    assert row["exact_match_stderr,none"] == pytest.approx(0.5 / 3**0.5)
    assert row["pass@2,none"] == pytest.approx(2 / 3)
    assert results["n-samples"]["sums"] == {"original": 4, "effective": 3}
    assert results["configs"]["sums"]["generation_kwargs"]["until"] == ["\n\n"]
    assert results["configs"]["sums"]["repeats"] == 2
    assert results["model_name"] == "gemma-4-E2B-it" and results["git_hash"] == "abc"
    assert results["higher_is_better"]["sums"] == {"exact_match": True, "pass@2": True}


def test_samples(tmp_path):
    results, (lines,) = _write(tmp_path)
    assert [line["doc_id"] for line in lines] == [0, 1, 2]
    one = lines[1]
    assert one.keys() >= FIELDS
    assert one["target"] == "2" and one["exact_match"] == 0.5
    assert one["filtered_resps"] == [["2", ""]]
    assert one["resps"][0][0] == "<|channel>thought\nhm 0<channel|>2"
    assert one["arguments"]["gen_args_0"]["arg_0"] == "1 + 1?"
    assert one["prompt_hash"] == hashlib.sha256(b"1 + 1?").hexdigest()
    assert one["doc_hash"] == hashlib.sha256(json.dumps(one["doc"], indent=2).encode()).hexdigest()
    hashes = "".join(line["doc_hash"] + line["prompt_hash"] + line["target_hash"] for line in lines)
    assert results["task_hashes"]["sums"] == hashlib.sha256(hashes.encode()).hexdigest()


def test_two_ways_of_asking_get_files_of_their_own(tmp_path):
    greedy = [judged(i, 0, "0", settings={"temperature": 0.0}, key=f"greedy-{i}") for i in range(2)]
    results, files = _write(
        tmp_path, answers(ROWS) + [j for j in greedy if j.generation.item == "q0"]
    )
    assert len(files) == 2 and len(results["results"]) == 2
    assert all(name.startswith("sums_") for name in results["results"])


def test_names_are_found_by_their_own_functions(tmp_path):
    utils = pytest.importorskip("lm_eval.utils")
    _write(tmp_path)
    names = [str(path) for path in (tmp_path / "lm_eval").rglob("*.json*")]
    (results,), (samples,) = (
        utils.get_results_filenames(names),
        utils.get_sample_results_filenames(names),
    )
    assert utils.get_file_task_name(samples.rsplit("/", 1)[1]) == "sums"
    assert utils.get_file_datetime(samples) in results
