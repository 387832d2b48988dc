"""Every row is answered once, with what it gets alone, however often the job is killed."""

import json

import numpy as np
import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.engine import Engine
from gemma4_jax.sample.file_job import answer_file

OPTIONS = dict(max_new_tokens=8, temperature=1.0, top_k=20, seed=3)
NOTE = dict(OPTIONS, model="tiny")


class Killed(BaseException):
    """Nobody catches this."""


@pytest.fixture(scope="module")
def engine(model):
    return Engine(
        model, max_slots=4, max_tokens=512, page_size=8, prefill_tokens=32, steps=4, snapshots=2
    )


@pytest.fixture
def prompts(tmp_path):
    rng = np.random.default_rng(0)
    rows = [{"prompt": f"{rng.integers(99)} apples"} for _ in range(30)]
    rows[4] = {"prompt": ""}
    rows[7] = {"question": "?"}
    lines = [json.dumps(row) for row in rows]
    lines[9] = "{not json"
    lines.insert(12, "")  # blank lines are no rows, and count as lines
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return file


def read(file):
    return {line["row"]: line for line in map(json.loads, file.read_text().splitlines())}


def test_a_killed_job_goes_on(model, engine, prompts, tmp_path):
    answers, rng = tmp_path / "out" / "answers.jsonl", np.random.default_rng(1)
    asked, real = [], engine.submit
    engine.submit = lambda prompt, **rest: (asked.append(prompt), real(prompt, **rest))[1]

    kills = 0
    for _ in range(40):
        left = [int(rng.integers(1, 6))]

        def told(progress, left=left):
            left[0] -= 1
            if not left[0]:
                raise Killed

        try:
            end = answer_file(engine, prompts, answers, OPTIONS, NOTE, told)
            break
        except Killed:
            kills += 1
            assert engine.idle
            if kills % 2:  # in the middle of a line
                text = answers.read_text()
                answers.write_text(text[: len(text) - int(rng.integers(0, 20))])
    del engine.submit
    assert kills > 3
    assert (end.answered, end.refused, end.left) == (27, 3, 0)
    assert len(answers.read_text().splitlines()) == 30
    found = read(answers)
    assert sorted(found) == [*range(1, 13), *range(14, 32)]
    assert "empty" in found[5]["error"] and "question" in found[8]["error"]
    lines = prompts.read_text().splitlines()
    for index, row in [(0, 1), (5, 6), (18, 20)]:
        # The draws of a row depend on the seed and its number alone.
        batch = [json.loads(lines[row - 1])["prompt"]] * (index + 1)
        assert found[row]["text"] == Sampler(model).generate(batch, **OPTIONS)[-1].text
    before = answers.read_text()
    answer_file(engine, prompts, answers, OPTIONS, NOTE)
    assert answers.read_text() == before


def test_answers_of_another_run_are_not_mixed(engine, prompts, tmp_path):
    answers = tmp_path / "answers.jsonl"
    answer_file(engine, prompts, answers, OPTIONS, NOTE)
    before = answers.read_text()
    with pytest.raises(UserError, match="seed 3, not 4"):
        answer_file(engine, prompts, answers, OPTIONS | dict(seed=4), NOTE | dict(seed=4))
    prompts.write_text('{"prompt": "other"}\n')
    with pytest.raises(UserError, match="other prompts"):
        answer_file(engine, prompts, answers, OPTIONS, NOTE)
    stranger = tmp_path / "notes.txt"
    stranger.write_text("mine\n")
    with pytest.raises(UserError, match="another file"):
        answer_file(engine, prompts, stranger, OPTIONS, NOTE)
    assert answers.read_text() == before and stranger.read_text() == "mine\n"


def test_files_that_cannot_be_used(engine, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n\n")
    with pytest.raises(UserError, match="no rows"):
        answer_file(engine, empty, tmp_path / "a", OPTIONS, NOTE)
    with pytest.raises(UserError, match="cannot read"):
        answer_file(engine, tmp_path / "none.jsonl", tmp_path / "a", OPTIONS, NOTE)
