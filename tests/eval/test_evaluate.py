"""The chain without a model: what is asked, kept, judged and added up, and what happens when it stops."""

import json
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from configs.evals import CodeforcesConfig, EvalConfig, GenerationConfig, LiveCodeBenchConfig
from eval import score
from eval.asks import choose, resolve, sample_seed
from eval.backend import Refusal
from eval.evaluate import evaluate
from eval.folder import RunFolder
from eval.progress import Progress
from eval.store import read
from eval.task import Item, Settings
from eval.tasks import tasks_with
from gemma4_jax.errors import UserError

from .scripted import Scripted, reply
from .small_tasks import TASKS, small, write_items


@pytest.fixture
def config(tmp_path):
    tasks = write_items(tmp_path / "data", 6)
    return EvalConfig(
        tasks=tuple(tasks[:2]),
        workdir=str(tmp_path / "run"),
        generation=GenerationConfig(samples=3),
    )


def results(config):
    return json.loads((Path(config.workdir) / "results.json").read_text())


def generations(config):
    return list(read(Path(config.workdir) / "generations.jsonl"))


def test_every_sample_of_every_item_once_with_a_seed_of_its_own(config, capsys):
    source = Scripted()
    assert evaluate([config], [source], TASKS) == 0
    made = generations(config)
    assert len(made) == len({g.key for g in made}) == 2 * 6 * 3
    assert {(g.task, g.item, g.sample) for g in made} == {
        (t, f"q{i}", s) for t in ("has_a", "has_e") for i in range(6) for s in range(3)
    }
    assert len({g.seed for g in made}) == 36
    assert all(0 <= g.seed < 2**31 for g in made)
    assert made[0].settings == {
        "max_tokens": 16, "thinking": True, "temperature": 1.0, "top_p": 0.95, "top_k": 40,
        "stop": [], "seed": 0,
    }  # fmt: skip
    # Items are shuffled, an item's samples stay together.
    items = [(g.task, g.item) for g in made]
    assert items != sorted(items)
    assert [items[i] for i in range(0, 36, 3)] == [items[i] for i in range(2, 36, 3)]
    assert "has a" in capsys.readouterr().out


def test_scores_are_those_of_the_answers(config):
    evaluate([config], [Scripted()], TASKS)
    by_item = {}
    for one in generations(config):
        if one.task == "has_a":
            by_item.setdefault(one.item, []).append("a" in one.answer)
    means = [sum(v) / 3 for v in by_item.values()]
    (first, second) = results(config)["results"]
    assert (first["task"], second["task"]) == ("has_a", "has_e")
    assert first["score"]["estimate"] == pytest.approx(sum(means) / 6)
    assert first["pass_at_k"][0]["score"]["estimate"] == pytest.approx(sum(means) / 6)
    assert {row["name"] for row in first["categories"]} == {"even", "odd"}
    assert first["summary"] == {"judged": 18.0}
    assert (first["questions"], first["samples"], first["samples_asked"]) == (6, 18, 18)
    assert first["no_answer"] == pytest.approx(1 - sum(map(sum, by_item.values())) / 18)
    assert first["answer_tokens"]["mean"] == 8.0


def test_a_stopped_run_goes_on_and_repeats_nothing(config):
    with pytest.raises(KeyboardInterrupt):
        evaluate([config], [Scripted(stop_after=11)], TASKS)
    before = generations(config)
    assert len(before) == 11
    again = Scripted()
    evaluate([config], [again], TASKS)
    assert len(again.asked) == 36 - 11
    assert generations(config)[:11] == before
    undisturbed = replace(config, workdir=config.workdir + "-2")
    evaluate([undisturbed], [Scripted()], TASKS)
    assert results(config)["results"] == results(undisturbed)["results"]
    for task in ("has_a", "has_e"):
        files = [Path(c.workdir) / "verdicts" / f"{task}.jsonl" for c in (config, undisturbed)]
        assert files[0].read_text() == files[1].read_text()


def test_a_finished_run_asks_nothing_and_opens_no_model(config):
    evaluate([config], [Scripted()], TASKS)
    source = Scripted()
    source.open = lambda: pytest.fail("opened")
    assert evaluate([config], [source], TASKS) == 0


def test_more_items_samples_and_benchmarks_add_to_a_folder(config):
    small_one = replace(
        config, limit=2, generation=GenerationConfig(samples=2), tasks=config.tasks[:1]
    )
    evaluate([small_one], [Scripted()], TASKS)
    source = Scripted()
    evaluate([config], [source], TASKS)
    assert len(source.asked) == 36 - 4
    assert [r["samples"] for r in results(config)["results"]] == [18, 18]
    # A smaller run in the same folder still tells of everything that is there.
    evaluate([small_one], [Scripted()], TASKS)
    assert [r["samples"] for r in results(config)["results"]] == [18, 18]


def test_another_seed_setting_model_or_message_is_another_generation(config):
    evaluate([config], [Scripted()], TASKS)
    for changed in (
        replace(config, seed=1),
        replace(config, protocol="reference"),
        replace(config, generation=GenerationConfig(samples=3, temperature=0.5)),
        replace(config, generation=GenerationConfig(samples=3, top_k=0)),
    ):
        source = Scripted()
        evaluate([changed], [source], TASKS)
        assert len(source.asked) == 36
    other = Scripted(name="other")
    evaluate([config], [other], TASKS)
    assert len(other.asked) == 36
    assert len(results(config)["results"]) == 2 * 6


def test_two_ways_that_come_to_the_same_are_asked_once(config):
    source = Scripted()
    evaluate(
        [config, replace(config, generation=GenerationConfig(samples=3, top_k=40))], [source], TASKS
    )
    assert len(source.asked) == 36


def test_another_file_of_the_same_name_is_refused(config, tmp_path):
    evaluate([config], [Scripted()], TASKS)
    write_items(tmp_path / "data", 7)
    with pytest.raises(UserError, match=r"was made with another has_a .*give another --workdir"):
        evaluate([config], [Scripted()], TASKS)
    with pytest.raises(UserError, match="put the old one back"):
        score.score(config.workdir, TASKS)


def test_other_options_of_a_benchmark_are_refused(config, tmp_path):
    """They decide which items there are and how they are judged: one folder has one kind."""
    folder = RunFolder(tmp_path / "run")
    folder.open_task("livecodebench", "a", "1", {"start": "2024-08-01"})
    folder.open_task("livecodebench", "a", "1", {"start": "2024-08-01"})
    with pytest.raises(
        UserError, match="made with start 2024-08-01 for livecodebench, now it is no"
    ):
        folder.open_task("livecodebench", "a", "1")


def test_options_reach_their_benchmark(config, tmp_path):
    asked = replace(
        config,
        livecodebench=LiveCodeBenchConfig(end="2025-05-31", checking="official"),
        codeforces=CodeforcesConfig(standings=str(tmp_path / "none.jsonl")),
    ).options()
    assert asked["livecodebench"] == {"end": "2025-05-31", "checking": "official"}
    with pytest.raises(UserError, match=r"none\.jsonl"):
        tasks_with(asked)
    found = tasks_with({"livecodebench": asked["livecodebench"]})
    assert "to 2025-05-31, official checking" in found["livecodebench"].title
    with pytest.raises(UserError, match="unknown release"):
        tasks_with({"livecodebench": {"release": "v9"}})


def test_an_unknown_benchmark_is_named(config):
    with pytest.raises(UserError, match=r"unknown benchmark 'has_a'.*known: has_o"):
        evaluate([config], [Scripted()], {"has_o": TASKS["has_o"]})


def test_scores_can_be_made_again_without_a_model(config, capsys):
    evaluate([config], [Scripted()], TASKS)
    before = results(config)
    capsys.readouterr()
    # The same benchmark, read otherwise.
    stricter = {**TASKS, "has_a": replace(small("has_a", "zzz"))}
    assert score.score(config.workdir, stricter) == 0
    assert [r["score"]["estimate"] for r in results(config)["results"]] == [
        0.0,
        before["results"][1]["score"]["estimate"],
    ]
    assert score.score(config.workdir, TASKS) == 0
    assert results(config) == before
    assert "has e" in capsys.readouterr().out


def test_answers_to_prompts_that_are_asked_otherwise_now_do_not_count(config, capsys):
    evaluate([config], [Scripted(lambda ask: reply("a"))], TASKS)
    task = TASKS["has_a"]
    politer = replace(
        task, prompt=lambda *given: [{"role": "system", "content": "Please."}, *task.prompt(*given)]
    )
    source = Scripted(lambda ask: reply("zzz"))
    evaluate([config], [source], {**TASKS, "has_a": politer})
    assert len(source.asked) == 18
    first, second = results(config)["results"]
    assert (first["score"]["estimate"], first["samples"]) == (0.0, 18)
    assert (second["score"]["estimate"], second["samples"]) == (0.0, 18)  # no "e" in "a"
    assert "18 answers are to prompts that" in capsys.readouterr().err


def test_a_thought_that_did_not_end_is_wrong_whatever_it_says(config, capsys):
    def cut(ask):
        if ask.sample:
            return reply("aaa")
        return reply(
            "<|channel>thought\naaa", thought="aaa", answer="", finish_reason="length",
            unfinished_thought=True, thought_tokens=16, answer_tokens=0,
        )  # fmt: skip

    asked_for_letters = []
    task = TASKS["has_a"]
    spy = replace(
        task, score=lambda item, a: (asked_for_letters.append(a.text), task.score(item, a))[1]
    )
    evaluate([config], [Scripted(cut)], {**TASKS, "has_a": spy})
    first = results(config)["results"][0]
    assert first["score"]["estimate"] == pytest.approx(2 / 3)
    assert first["unfinished_thoughts"] == first["truncated"] == pytest.approx(1 / 3)
    assert set(asked_for_letters) == {"aaa"}
    assert "thoughts did not end" in capsys.readouterr().err


def test_copies_instead_of_samples_are_noticed(config, capsys):
    evaluate([config], [Scripted(lambda ask: reply("word " * 50))], TASKS)
    assert "copies of each other" in capsys.readouterr().err
    assert results(config)["results"][0]["identical_repeats"] == 1.0


def test_what_cannot_be_asked_is_left_out_and_asked_again(config, capsys):
    def some(ask):
        return Refusal(why="too long") if ask.item.id == "q3" else reply("a")

    assert evaluate([config], [Scripted(some)], TASKS) == 1
    assert "6 of 36 could not be asked, the first: has_" in capsys.readouterr().err
    assert [r["samples_asked"] - r["samples"] for r in results(config)["results"]] == [3, 3]
    again = Scripted()
    assert evaluate([config], [again], TASKS) == 0
    assert len(again.asked) == 6


def test_many_refusals_at_the_beginning_do_not_end_a_run(config, capsys):
    """A file may be sorted by length, the longest first."""
    seen = []

    def longest_first(ask):
        seen.append(ask)
        return Refusal(why="too long") if len(seen) <= 30 else reply("a")

    assert evaluate([config], [Scripted(longest_first)], TASKS) == 1
    assert len(generations(config)) == 6
    error = capsys.readouterr().err
    assert error.count("is left out: too long") == 2  # told at once, of each benchmark the first
    assert "30 of 36 could not be asked" in error


def test_a_run_that_is_refused_everything_says_why(config, capsys):
    source = Scripted(lambda ask: Refusal(why="max_new_tokens is 99", of_all=True))
    assert evaluate([config], [source], TASKS) == 1
    out, error = capsys.readouterr()
    assert error.count("cannot be asked with these settings at all: max_new") == 2
    assert re.search("error: 36 of 36 could not be asked, .*has_.*max_new_tokens is 99\n", error)
    assert not out


def test_a_mistake_in_a_scorer_costs_no_generation(config, tmp_path, capsys):
    file = tmp_path / "data" / "has_a.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[2]["question"] = "crash"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert evaluate([config], [Scripted()], TASKS) == 1
    error = capsys.readouterr().err
    assert "3 answers could not be judged, the first: has_a item q2 sample" in error
    assert "RuntimeError: a scorer with a mistake" in error
    assert len(generations(config)) == 36
    assert results(config)["results"][0]["samples"] == 15


def test_scoring_runs_beside_generation(config):
    """Verdicts that take as long as answers cost hardly any time: both wait at once."""
    pause, threads = 0.01, set()
    task = TASKS["has_a"]

    def slow(item, answer):
        threads.add(threading.get_ident())
        time.sleep(pause)
        return task.score(item, answer)

    def say(ask):
        time.sleep(pause)
        return reply("a")

    one = replace(config, tasks=config.tasks[:1], generation=GenerationConfig(samples=16))
    start = time.monotonic()
    evaluate([one], [Scripted(say)], {"has_a": replace(task, score=slow)})
    assert time.monotonic() - start < 1.6 * 96 * pause + 0.5
    assert threading.get_ident() not in threads


def test_items_are_drawn_by_the_seed_and_a_smaller_limit_is_a_part():
    items = [Item(id=str(i), data={}) for i in range(100)]
    ten, twenty = ({i.id for i in choose(items, n, "sample", 5)} for n in (10, 20))
    assert len(ten) == 10 and ten < twenty
    assert {i.id for i in choose(items, 10, "sample", 6)} != ten
    assert [i.id for i in choose(items, 3, "first", 5)] == ["0", "1", "2"]
    assert choose(items, 0, "sample", 0) == choose(items, 1000, "sample", 0) == items


def test_seeds_of_an_item_never_meet():
    assert len({sample_seed(0, "t", "i", s) for s in range(5000)}) == 5000
    assert sample_seed(0, "t", "i", 0) != sample_seed(1, "t", "i", 0)


def test_the_line_of_progress():
    progress = Progress(40, 100)
    for reason in ("stop", "length", "stop", "stop"):
        progress.add(reply("four", finish_reason=reason))
    line = progress.line({"aime": (44, 0.25)}, {"tokens": 2000, "seconds": 8.0}, 16.0)
    assert (
        line == "44/100 answers  ETA 0:03:44  aime 0.250 (44 scored)  250 tokens/s  truncated 25.0%"
    )


def test_zero_and_one_turn_filters_off():
    task = replace(TASKS["has_a"], settings={"thinking": Settings(max_tokens=9, samples=2)})
    off = resolve(task, "thinking", GenerationConfig(top_k=0, top_p=1))
    assert (off.top_k, off.top_p, off.max_tokens, off.samples) == (None, None, 9, 2)
    with pytest.raises(UserError, match="unknown protocol of has_a 'reference'"):
        resolve(task, "reference", GenerationConfig())
