"""Rounds with a tiny model of random weights, killed at every stage: what is finished is never done again,
and the end is that of a run which nobody killed.

The model knows nothing, so a verifier that likes every other length makes it right half the time; and DPO is
a step that changes a norm, but for one run, which is `train.dpo`'s.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from configs.mesh import MeshConfig
from configs.rlaif import PRESETS
from configs.schema import BatchConfig, DataConfig, ModelSource, RunConfig
from configs.verifiable import PairsConfig, RLAIFConfig, RoundsConfig, SamplingConfig
from gemma4_jax import checkpoint
from gemma4_jax.data.encode import dpo_encoder
from gemma4_jax.errors import UserError
from gemma4_jax.verify.judgement import Judgement
from train import dpo
from train.verifiable import answers, files, gather, prompts, rounds, verdicts

from .conftest import write_rows

dpo_run = dpo.run

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


class Killed(BaseException):
    """As SIGKILL would: nothing catches it."""


ROWS = [
    {"id": f"p{i}", "prompt": f"what is {WORDS[i]}", "verifier": {"kind": "even"}}
    for i in range(10)
]


def even(text: str, prompt: str) -> Judgement:
    assert prompt.startswith("<bos>")
    right = len(text) % 2 == 0
    return Judgement(score=float(right), note="" if right else "odd length")


def nudge(config) -> int:
    model = checkpoint.load(config.model.path)
    scaled = jax.tree.map(lambda leaf: leaf * 1.01, model.params)
    checkpoint.save_huggingface(
        replace(model, params=scaled), Path(config.run.workdir) / "huggingface"
    )
    return 0


@pytest.fixture(scope="module", autouse=True)
def cheap():
    """Verifiers of lengths, and a DPO that takes no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts.Verifiers, "of", lambda self, row: even)
        patch.setattr(dpo, "run", nudge)
        yield


def configured(place: Path, model: Path) -> RLAIFConfig:
    """Two rounds of two prompts each in the empty folder `place`."""
    write_rows(place / "prompts.jsonl", ROWS[:4])
    write_rows(place / "held.jsonl", ROWS[6:])
    return RLAIFConfig(
        model=ModelSource(path=str(model)),
        mesh=MeshConfig(fsdp=1),
        data=DataConfig(
            path=str(place / "prompts.jsonl"),
            validation=(str(place / "held.jsonl"),),
            max_length=160,
        ),
        batch=BatchConfig(rows=2),
        run=RunConfig(workdir=str(place / "run"), steps=2, log_every=1, samples=0),
        # Nothing filtered: among random scores a stop id is seldom one of the likeliest.
        sampling=SamplingConfig(
            samples=10,
            evaluation_samples=2,
            top_k=0,
            top_p=1.0,
            max_new_tokens=32,
            max_slots=16,
            max_tokens=4096,
        ),
        pairs=PairsConfig(length_ratio=64.0),
        rounds=RoundsConfig(count=2, prompts=2),
    )


@pytest.fixture
def config(tmp_path, model_folder) -> RLAIFConfig:
    return configured(tmp_path, model_folder)


@pytest.fixture(scope="module")
def finished(cheap, tmp_path_factory, model_folder) -> RLAIFConfig:
    """A run that nobody disturbed."""
    config = configured(tmp_path_factory.mktemp("finished"), model_folder)
    assert rounds.run(config) == 0
    return config


def folder(config) -> Path:
    return Path(config.run.workdir)


def lines(file: Path) -> list[dict[str, Any]]:
    return sorted(map(json.loads, file.open()), key=lambda row: (row["prompt"], row["sample"]))


def outcome(config) -> dict[str, Any]:
    """Everything that a run found out."""
    found: dict[str, Any] = {}
    for file in sorted(folder(config).glob("round_*/*.json*")):
        name = str(file.relative_to(folder(config)))
        if file.suffix == ".jsonl" and file.name != "pairs.jsonl":
            found[name] = lines(file)  # they are in the order in which they ended
        else:
            found[name] = file.read_text()
    found["report"] = (folder(config) / "report.md").read_text()
    return found


def test_a_run_leaves_what_it_promised(finished):
    here = folder(finished)
    for number in (1, 2):
        said = lines(here / f"round_{number}" / "samples.jsonl")
        assert len(said) == 20 and len({row["seed"] for row in said}) == 20
        assert {row["prompt"] for row in said} == {
            f"p{i}" for i in range(2 * number - 2, 2 * number)
        }
        counts = json.loads((here / f"round_{number}" / "pairs.json").read_text())
        assert sum(counts["answers"].values()) == 20 and sum(counts["prompts"].values()) == 2
    start, first, second = (
        json.loads((here / f"round_{i}" / "evaluation.json").read_text()) for i in range(3)
    )
    assert len({start["model"], first["model"], second["model"]}) == 3
    held = first["sets"]["held"]
    verdicts_said = lines(here / "round_1" / "held.verdicts.jsonl")
    assert (held["prompts"], held["answers"]) == (4, 8) == (4, len(verdicts_said))
    assert held["right"] == sum(row["right"] for row in verdicts_said) == held["accuracy"] * 8
    assert first["drift"]["answers"] == 4
    # Decoding and scoring are two programs of one model: the start has not gone from itself.
    assert abs(start["drift"]["nats"]) < 1e-3
    assert first["drift"]["nats"] > 1e-3
    page = (here / "report.html").read_text()
    assert "<svg " in page and "odd length" in page
    report = (here / "report.md").read_text()
    assert "| 1 -> 2 |" in report and "2 answers to each held-out prompt" in report


def test_pairs_say_where_they_came_from_and_hold_what_was_written(finished, tokenizer):
    here = folder(finished) / "round_1"
    said = {(row["prompt"], row["sample"]): row for row in lines(here / "samples.jsonl")}
    pairs = [json.loads(line) for line in (here / "pairs.jsonl").open()]
    assert pairs
    start = json.loads((here.parent / "round_0" / "evaluation.json").read_text())["model"]
    for pair in pairs:
        about = pair["provenance"]
        assert (about["round"], about["model"], about["verifier"]) == (1, start, "even")
        assert about["sampling"]["temperature"] == 1.0 and about["sampling"]["samples"] == 10
        for side, right in (("chosen", True), ("rejected", False)):
            row = said[about["prompt"], about[side]["sample"]]
            assert about[side]["seed"] == row["seed"] and about[side]["right"] is right
            assert about[side]["reason"] == ("" if right else "odd length")
            assert about[side]["tokens"] == len(row["ids"])
            assert pair[side] == tokenizer.decode(row["ids"])
            assert even(row["text"], "<bos>").right is right
        # What DPO learns from is the prompt that the engine read, and both answers to their last token.
        (chosen, rejected) = dpo_encoder(tokenizer, "small")(pair).examples[0]
        for sequence, side in ((chosen, "chosen"), (rejected, "rejected")):
            learnt = [int(t) for t, k in zip(sequence.tokens, sequence.loss_mask, strict=True) if k]
            assert tokenizer.decode(learnt) == pair[side]
            assert learnt[-1] in tokenizer.stop_ids


#: Where a run of one round is killed, in order: between lines of a file, before a file, around DPO.
LINES = {"samples": 5, "verdicts": 2}
FILES = ("write_json", "write_rows")
DPO = ("before dpo", "after dpo")
MEASURED = {"held.answers": 2, "held.verdicts": 2, "held.reference": 2}


def kill(config, monkeypatch, place: str, target: Any, name: str, replacement: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(target, name, replacement)
        with pytest.raises(Killed):
            rounds.run(config)
            pytest.fail(f"{place}: it was not killed")


def kill_between_lines(config, monkeypatch, which: str, left: int) -> tuple[Path, str]:
    """The file, and what was in it; a torn line follows."""
    put = files.Lines.put

    def until(lines, row):
        nonlocal left
        if lines.path.name == f"{which}.jsonl" and lines.path.parent.name == "round_1":
            if not left:
                raise Killed
            left -= 1
        put(lines, row)

    kill(config, monkeypatch, which, files.Lines, "put", until)
    file = folder(config) / "round_1" / f"{which}.jsonl"
    begun = file.read_text()
    with file.open("a") as torn:
        torn.write('{"prompt": "p0", "sa')
    return file, begun


def test_a_run_killed_at_every_stage_ends_as_one_that_was_not(finished, config, monkeypatch):
    def stop(*_: object) -> None:
        raise Killed

    def learn_and_stop(given) -> None:
        nudge(given)
        raise Killed

    one = replace(config, rounds=replace(config.rounds, count=1))
    begun = [kill_between_lines(one, monkeypatch, *each) for each in LINES.items()]
    for name in FILES:
        kill(one, monkeypatch, name, gather, name, stop)
    for place, learn in zip(DPO, (stop, learn_and_stop), strict=True):
        kill(one, monkeypatch, place, dpo, "run", learn)
    begun += [kill_between_lines(one, monkeypatch, *each) for each in MEASURED.items()]
    assert rounds.run(one) == 0
    for file, text in begun:
        assert file.read_text().startswith(text)
    whole, found = outcome(finished), outcome(one)
    assert found.keys() - {"report"} == {n for n in whole if n.startswith(("round_0", "round_1"))}
    assert {n: v for n, v in found.items() if n != "report" and v != whole[n]} == {}
    # It goes on with more rounds, which are those of a run that had them from the beginning.
    assert rounds.run(config) == 0
    assert outcome(config) == whole


def test_a_finished_run_does_nothing_again(finished, monkeypatch):
    before = outcome(finished)

    def never(*_: object, **__: object):
        raise AssertionError("this was done before")

    monkeypatch.setattr(answers, "collect", never)
    monkeypatch.setattr(dpo, "run", never)
    monkeypatch.setattr(checkpoint, "load", never)
    assert rounds.run(finished) == 0
    assert outcome(finished) == before


def test_another_configuration_or_other_prompts_are_refused(config):
    files.write_json(folder(config) / "rlaif.json", {})
    with pytest.raises(UserError, match=r"was started otherwise: .*seed was None"):
        rounds.run(config)
    (folder(config) / "rlaif.json").unlink()
    (folder(config) / "other").touch()
    with pytest.raises(UserError, match="not empty and no such run made it"):
        rounds.run(config)
    (folder(config) / "other").unlink()
    rounds._open(folder(config), config, *read(config), "model")
    hotter = replace(config, sampling=replace(config.sampling, temperature=0.7))
    with pytest.raises(UserError, match=r"sampling.temperature was 1.0, is 0.7"):
        rounds._open(folder(config), hotter, *read(config), "model")
    with pytest.raises(UserError, match="the model was 'model', is 'another'"):
        rounds._open(folder(config), config, *read(config), "another")
    write_rows(Path(config.data.path), ROWS[:3])
    with pytest.raises(UserError, match="the prompts was"):
        rounds._open(folder(config), config, *read(config), "model")
    more = replace(config, rounds=replace(config.rounds, count=9))
    write_rows(Path(config.data.path), ROWS[:4])
    rounds._open(folder(config), more, *read(config), "model")


def read(config):
    names = (config.data.path, *config.data.validation)
    first, *others = (prompts.read_prompts(name, config.verify) for name in names)
    return first, others


def test_a_policy_that_is_always_right_ends_the_rounds(config, monkeypatch, capsys):
    right = Judgement(score=1.0)
    monkeypatch.setattr(verdicts.Verifiers, "of", lambda self, row: lambda text, prompt: right)
    config = replace(
        config,
        data=replace(config.data, validation=()),
        sampling=replace(config.sampling, samples=2),
    )
    assert rounds.run(config) == 0
    assert "round 1: no pairs" in capsys.readouterr().out
    assert not (folder(config) / "round_2").exists()
    assert "all right" in (folder(config) / "report.md").read_text()


def test_rounds_need_a_model_and_files_of_different_names(config, tmp_path):
    with pytest.raises(UserError, match=r"give --model.path"):
        rounds.run(replace(config, model=ModelSource(architecture="tiny-ple")))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "held.jsonl").write_text((tmp_path / "held.jsonl").read_text())
    twice = (str(tmp_path / "held.jsonl"), str(tmp_path / "b" / "held.jsonl"))
    with pytest.raises(UserError, match=r"two files of data.validation are called 'held'"):
        rounds.run(replace(config, data=replace(config.data, validation=twice)))


@pytest.mark.slow
def test_rounds_with_dpo_itself_stop_at_a_signal_and_go_on(config, monkeypatch):
    """Its second round is pulled towards the start, not towards the policy of the first."""
    config = replace(config, rounds=replace(config.rounds, reference="start"))
    train, codes = dpo_run, [143]
    seen = []

    def learn(given):
        seen.append((given.model.path, given.loss.reference_path))
        return train(given) if not codes else codes.pop()

    monkeypatch.setattr(dpo, "run", learn)
    assert rounds.run(config) == 143
    assert not (folder(config) / "round_1" / "evaluation.json").exists()
    assert rounds.run(config) == 0
    start, first = config.model.path, str(folder(config) / "round_1" / "dpo" / "huggingface")
    assert seen == [(start, ""), (start, ""), (first, start)]
    losses = [
        json.loads((folder(config) / f"round_{i}" / "dpo" / "metrics.jsonl").open().readline())[
            "loss"
        ]
        for i in (1, 2)
    ]
    # Where the policy is the reference the first loss is ln 2; of the second round it is not.
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert abs(losses[1] - 0.693147) > 1e-5
    assert not (folder(config) / "round_2" / "dpo" / "checkpoints").exists()


def test_presets_are_dpos_with_rounds_around():
    from configs import dpo as plain

    for name, preset in PRESETS.items():
        assert preset().dpo().optim == plain.PRESETS[name]().optim
