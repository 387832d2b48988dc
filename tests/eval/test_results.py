"""From judged samples to numbers: by hand, with samples missing, and through results.json."""

import dataclasses
import json

import pytest

from eval.judged import by_question, cells, read_folder
from eval.outputs import write_results
from eval.results import read_json, write_json
from eval.stats import clustered
from eval.summarize import summarize, summarize_all
from eval.task import Graded
from gemma4_jax.errors import UserError
from tests.eval.made_runs import answers, judged, source, write_run

# Of q0, q1, q2 the right answers are 0, 2, 4.
ROWS = [["0", "0", "0", "0"], ["2", "3", "3", "2"], ["5", None, None, "5"]]


def test_numbers_by_hand():
    got = summarize(source(), answers(ROWS))
    assert got.score == clustered([1, 0.5, 0], 12)
    assert got.score.estimate == 0.5 and got.name == "avg@4"
    assert (got.questions, got.samples, got.samples_asked, got.samples_each) == (3, 12, 12, (4, 4))
    assert got.standard_error == pytest.approx(0.5 / 3**0.5)
    # Runs: samples 0 to 3 of all questions are right twice, once, once, twice of three times.
    assert got.standard_error_across_runs == pytest.approx((1 / 27) ** 0.5 / 2)
    assert [(a.k, a.questions) for a in got.pass_at_k] == [(1, 3), (2, 3), (4, 3)]
    assert [a.score.estimate for a in got.pass_at_k] == [
        pytest.approx(0.5), pytest.approx((1 + 5 / 6 + 0) / 3), pytest.approx(2 / 3),
    ]  # fmt: skip
    # q1 ties between 2 and 3; q2 has no right vote.
    assert [(a.k, a.score.estimate) for a in got.majority_at_k] == [(4, 0.5)]
    assert (got.no_answer, got.truncated, got.unfinished_thoughts) == (1 / 6, 1 / 6, 1 / 6)
    tokens = got.thought_tokens
    assert (tokens.mean, tokens.median, tokens.max) == (25, 25, 40)
    assert got.seconds.p95 == 0.5
    by_name = {c.name: (c.score.estimate, c.questions, c.samples) for c in got.categories}
    assert by_name == {"even": (0.5, 2, 8), "odd": (0.5, 1, 4)}
    assert [p.value for p in got.published] == [37.5, 89.2]
    assert got.data["sha256"] == "ab" * 32
    text = " ".join(got.notes)
    assert "ran out of tokens" in text and "not published" in text and "Incomplete" not in text


def test_questions_count_alike_whatever_samples_they_have():
    samples = answers([["0"], ["3", "3", "3", "3"]])
    got = summarize(source(2), samples)
    assert got.score.estimate == 0.5  # not 1 of 5
    assert got.samples_each == (1, 4)


def test_missing_samples_are_said():
    samples = [j for j in answers(ROWS) if (j.generation.item, j.generation.sample) != ("q1", 3)]
    got = summarize(source(5), samples)
    assert (got.questions, got.samples, got.samples_asked, got.samples_each) == (3, 11, 20, (3, 4))
    assert any("9 of 20 samples are missing" in n for n in got.notes)
    assert any("1 of 3 questions have fewer than 4 samples" in n for n in got.notes)
    assert any("over the 3 that every question has" in n for n in got.notes)
    assert [(a.k, a.questions) for a in got.pass_at_k] == [(1, 3), (2, 3), (4, 2)]
    assert any("1 of 12 samples" in n for n in summarize(source(5), samples, 12).notes)
    assert not any("missing" in n for n in summarize(source(5), samples, 11).notes)


def test_one_sample_each_has_no_rerun_error_and_no_majority():
    got = summarize(source(2), answers([["0"], ["3"]]))
    assert got.name == "accuracy"
    assert got.standard_error_across_runs is None and got.majority_at_k == []
    assert [a.k for a in got.pass_at_k] == [1]
    assert summarize(source(1), answers([["0"]])).bootstrap is None


def test_graded_scores_have_no_pass_at_k():
    samples = [dataclasses.replace(judged(0, s, "0"), score=0.5) for s in range(4)]
    got = summarize(source(1), samples)
    assert got.pass_at_k == [] and any("pass@k" in note for note in got.notes)


def test_programs_have_no_majority():
    assert summarize(source(runs_programs=True), answers(ROWS)).majority_at_k == []


def test_a_vote_may_be_another_word_than_the_answer():
    """Letters of shuffled choices: A, B, A name one choice, which `vote` says."""
    letters = [("A", "x", 1.0), ("B", "x", 1.0), ("A", "y", 0.0), ("A", "x", 1.0)]
    samples = [
        dataclasses.replace(judged(0, s, letter), score=score, details={"vote": vote})
        for s, (letter, vote, score) in enumerate(letters)
    ]
    assert summarize(source(1), samples).majority_at_k[0].score.estimate == 1


def test_letters_of_shuffled_choices_are_no_votes():
    samples = [
        judged(0, s, "0", messages=[{"role": "user", "content": f"order {s}"}]) for s in range(4)
    ]
    got = summarize(source(1), samples)
    assert got.majority_at_k == [] and any("No maj@k" in note for note in got.notes)
    voting = [dataclasses.replace(j, details={"vote": "x"}) for j in samples]
    assert len(summarize(source(1), voting).majority_at_k) == 1


def test_copies_are_found():
    long = "x" * 300
    copies = [judged(i, s, "1", text=long) for i in range(2) for s in range(4)]
    drawn = [judged(i, s, "1", text=long + str(s)) for i in range(2) for s in range(4)]
    assert summarize(source(2), copies).identical_repeats == 1
    assert any("ignored the seed" in note for note in summarize(source(2), copies).notes)
    assert summarize(source(2), drawn).identical_repeats == 0
    assert summarize(source(), answers(ROWS)).identical_repeats is None  # too short to tell


def test_a_summary_gets_every_sample():
    def summary(graded: list[Graded]) -> dict[str, float]:
        return {"answers of two": sum(g.verdict.extracted == "2" for g in graded), "n": len(graded)}

    assert summarize(source(summary=summary), answers(ROWS)).summary == {
        "answers of two": 2,
        "n": 12,
    }


def test_models_and_settings_are_rows_of_their_own():
    samples = (
        answers(ROWS) + answers(ROWS[:2], "f2") + [judged(0, 0, "1", settings={"temperature": 0.0})]
    )
    got = summarize_all({"sums": source()}, samples)
    assert [(r.model, r.samples) for r in got] == [("f1", 12), ("f2", 8), ("f1", 1)]
    assert len(cells(samples)) == 3
    with pytest.raises(UserError, match="no data of it"):
        summarize_all({}, samples)
    with pytest.raises(ValueError, match="'q2'"):
        summarize(source(2), answers(ROWS))


def test_results_come_back_from_json(tmp_path):
    got = [summarize(source(), answers(ROWS)), summarize(source(1), answers([["0"]]))]
    write_json(tmp_path / "results.json", got, {"git": "abc"})
    assert read_json(tmp_path / "results.json") == (got, {"git": "abc"})
    (tmp_path / "old.json").write_text('{"version": 0}')
    for name, match in (("none.json", "cannot read"), ("old.json", "version 1")):
        with pytest.raises(UserError, match=match):
            read_json(tmp_path / name)


def test_the_later_verdict_counts_and_what_has_none_is_counted(tmp_path):
    write_run(tmp_path, answers([["0", "1"]]))
    (file,) = (tmp_path / "verdicts").iterdir()
    first = json.loads(file.read_text().splitlines()[0])
    lines = [first | {"score": 0.25}, first | {"score": 0.75}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    joined, without = read_folder(tmp_path)
    assert [j.score for j in joined] == [0.75]
    assert without == 1


def test_a_folder_has_everything_after_scoring(tmp_path):
    write_run(tmp_path, answers(ROWS))
    with (tmp_path / "generations.jsonl").open("a") as file:
        file.write('{"key": "torn')
    assert len(read_folder(tmp_path)[0]) == 12
    got = write_results(tmp_path, {"sums": source()})
    assert read_json(tmp_path / "results.json")[0] == got
    names = {
        p.relative_to(tmp_path).as_posix().split("_20")[0]
        for p in tmp_path.rglob("*")
        if p.is_file()
    }
    assert names == {
        "generations.jsonl", "verdicts/sums.jsonl", "run.json", "results.json", "report.html",
        "lm_eval/gemma-4-E2B-it/results", "lm_eval/gemma-4-E2B-it/samples_sums",
    }  # fmt: skip
    before = sorted(tmp_path.rglob("*"))
    write_results(tmp_path, {"sums": source()})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_without_samples_says_so(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*generations.jsonl"):
        write_results(tmp_path, {})
    write_run(tmp_path, [])
    with pytest.raises(UserError, match="no judged samples"):
        write_results(tmp_path, {})
    (tmp_path / "generations.jsonl").write_text(json.dumps({"key": "x"}) + "\n")
    with pytest.raises(UserError, match=r"generations.jsonl:1: no 'answer'"):
        write_results(tmp_path, {})


def test_samples_are_in_order_of_their_numbers():
    samples = answers(ROWS)
    assert [j.generation.sample for j in by_question(samples[::-1])["q1"]] == [0, 1, 2, 3]
