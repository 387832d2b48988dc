"""Our engine as a back end, where it refuses: nothing is generated here, and no program compiled."""

from dataclasses import replace

import pytest

from configs.evals import EvalModel
from configs.mesh import MeshConfig
from eval.asks import Cell
from eval.backend import Refusal
from eval.engine_source import EngineSource
from eval.task import Item

from .small_tasks import SETTINGS, TASKS


@pytest.fixture(scope="module")
def backend(model_folders):
    model = EvalModel(dtype="float32", max_slots=2, max_tokens=128)
    return EngineSource(str(model_folders[0]), model, MeshConfig(fsdp=1)).open()


def refusals(backend, max_tokens, *questions):
    items = [Item(id=str(i), data={"question": text}) for i, text in enumerate(questions)]
    settings = replace(SETTINGS, max_tokens=max_tokens, samples=1)
    task = TASKS["has_a"]
    cell = Cell(task=task, items=items, model="m", protocol="thinking", settings=settings, seed=0)
    asks = (ask for item in items for ask in cell.asks(item))
    return [found[1] for found in backend.answers(asks) if found is not None]


def test_a_prompt_that_is_too_long_says_nothing_of_others(backend):
    found = refusals(backend, 64, "many words " * 8, "many more words " * 6)
    assert [type(one) for one in found] == [Refusal, Refusal]
    assert not any(one.of_all for one in found)
    assert "more than this engine's max_context of 128 (--model.max-tokens" in found[0].why


def test_an_answer_that_is_too_long_is_refused_with_any_prompt(backend):
    found = refusals(backend, 127, "a question", "many words " * 100, "another")
    assert [one.of_all for one in found] == [True] * 3
    assert "max_new_tokens is 127" in found[0].why
    # Of the prompt of a word, which was tried once.
    assert len({one.why for one in found}) == 1
