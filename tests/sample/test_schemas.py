"""Random schemas on a random model: what is finished satisfies its schema, and nothing else is refused."""

import json
import os
import random
import re

import jax
import pytest

from gemma4_jax.build import build
from gemma4_jax.config import ModelConfig
from gemma4_jax.errors import UserError
from gemma4_jax.model.transformer import init_params
from gemma4_jax.sample import Sampler, constraints, guidance
from gemma4_jax.sample.call_grammar import call_grammar
from gemma4_jax.sample.constraints import Constraint
from gemma4_jax.text import Tokenizer
from gemma4_jax.text.token_parse import parse_tokens
from gemma4_jax.text.train_tokenizer import train_tokenizer
from tests.sample import schemas

jsonschema = pytest.importorskip("jsonschema", reason="pip install -e '.[dev]'")
pytest.importorskip("llguidance", reason="pip install -e '.[dev]'")

#: GEMMA4_SCHEMAS=500 for the long run; GEMMA4_VOCABULARY=gemma for Gemma's own vocabulary (slow).
COUNT = int(os.environ.get("GEMMA4_SCHEMAS", "64"))
OWN = os.environ.get("GEMMA4_VOCABULARY") == "gemma"
LIMIT = 160
TEXTS = [
    json.dumps({"name": f"item {i}", "n": [i, i / 7, True, None], "tags": {"é": "a b"}})
    for i in range(60)
]


@pytest.fixture(scope="module")
def sampler(tmp_path_factory) -> Sampler:
    """One layer of each kind; its vocabulary has pieces that span the borders of JSON's parts."""
    if OWN:
        tokenizer = Tokenizer.builtin()
    else:
        folder = tmp_path_factory.mktemp("json")
        tokenizer = train_tokenizer(TEXTS, 360, folder / "tokenizer.model")
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size + 3,
        d_model=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        d_ff=16,
        layer_types=("sliding", "full"),
        window=16,
        num_global_kv_heads=1,
        global_head_dim=8,
        max_position=256,
    )
    model = build(config, init_params(config, jax.random.key(0)), tokenizer)
    return Sampler(model, prefill_chunk=16, max_batch=64)


def test_what_is_finished_satisfies_its_schema(sampler) -> None:
    rng = random.Random(11)
    wanted, kept, refused = [], [], []
    while len(wanted) < COUNT:
        schema = schemas.root(rng)
        try:
            constraint = constraints.json_schema(schema)
            guidance.matcher(constraint, sampler.model.tokenizer)
        except UserError as error:
            refused.append(str(error))
            continue
        kept.append(constraint)
        wanted.append(schema)
    done = sampler.generate(
        ["json: "] * COUNT,
        max_new_tokens=LIMIT,
        temperature=[1.0 + i % 3 for i in range(COUNT)],
        top_k=64 if OWN else None,
        constraint=kept,
    )
    finished = 0
    for schema, completion in zip(wanted, done, strict=True):
        jsonschema.Draft202012Validator.check_schema(schema)
        if completion.finish_reason != "stop":
            assert len(completion.tokens) == LIMIT
            continue
        finished += 1
        jsonschema.Draft202012Validator(schema).validate(json.loads(completion.text))
        outside = re.sub(r'"(?:\\.|[^"\\])*"', "", completion.text)
        assert not re.search(r"\s", outside), completion.text
    print(f"{finished} of {COUNT} finished, {len(refused)} refused")
    assert finished >= 0.8 * COUNT, finished
    # Only those are refused that contradict themselves: an exclusive bound next to another, ...
    assert len(refused) <= 0.1 * COUNT, refused


def test_calls_satisfy_the_parameters(sampler) -> None:
    """The same of the native call syntax, types and all, as the parser reads it back."""
    tokenizer, rng = sampler.model.tokenizer, random.Random(12)
    wanted, kept, refused = [], [], []
    while len(wanted) < COUNT // 2:
        names = rng.sample(schemas.NAMES, k=rng.randint(1, 4))
        parameters = {
            "type": "object",
            "properties": {name: schemas.schema(rng, 2) for name in names},
            "required": [name for name in names if rng.random() < 0.6],
        }
        try:
            text = call_grammar([{"name": "f", "parameters": parameters}], tokenizer, 2)
            constraint = Constraint(kind="lark", text=text, calls=True)
            guidance.matcher(constraint, tokenizer)
        except UserError as error:
            refused.append(str(error))
            continue
        wanted.append(parameters)
        kept.append(constraint)
    done = sampler.generate(
        ["call: "] * len(kept),
        max_new_tokens=LIMIT,
        temperature=1.0,
        top_k=64 if OWN else None,
        constraint=kept,
    )
    finished = 0
    for parameters, completion in zip(wanted, done, strict=True):
        if completion.finish_reason != "stop":
            continue
        finished += 1
        message = parse_tokens(tokenizer, completion.tokens)
        assert message.content is None and 1 <= len(message.tool_calls) <= 2
        for call in message.tool_calls:
            assert call.name == "f" and call.complete
            jsonschema.Draft202012Validator(parameters).validate(call.arguments)
    print(f"{finished} of {len(kept)} finished, {len(refused)} refused")
    assert finished >= 0.8 * len(kept), finished
    assert len(refused) <= 0.2 * COUNT, refused
