"""The sandboxed template, and our renderer against Google's own template."""

import random
from pathlib import Path

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.text import chat
from gemma4_jax.text.template import ChatTemplate
from tests.text.conftest import cases
from tests.text.conversations import conversation

MESSAGES = [{"role": "user", "content": "Hi"}]
EMPTY_THOUGHT = "<|channel>thought\n<channel|>"


@pytest.fixture(scope="session")
def google(shared: Path) -> ChatTemplate:
    """Google's template of 2026-07-09 in its small family's form (E2B, E4B)."""
    return ChatTemplate.load(shared / "vectors" / "dpo" / "tokenizer")


def test_google_template_is_the_small_family(google: ChatTemplate) -> None:
    for case in cases("prompt.json"):
        arguments = {k: case[k] for k in ("tools", "enable_thinking", "add_generation_prompt")}
        if "error_small" in case:
            with pytest.raises(UserError, match="rejects these messages"):
                google.render(case["messages"], **arguments, **case["extra_kwargs"])
        else:
            text = google.render(case["messages"], **arguments, **case["extra_kwargs"])
            assert text == case["expected_prompt_small"]


@pytest.mark.parametrize("seed", range(12))
def test_our_renderer_writes_what_google_template_writes(google: ChatTemplate, seed: int) -> None:
    rng = random.Random(seed)
    endings = set()
    for _ in range(100):
        arguments = conversation(rng)
        expected = google.render(**arguments)
        assert chat.render(**arguments, family="small") == expected
        # The large family differs in one place: the end of a prompt with thinking off.
        large = chat.render(**arguments)
        opened = arguments["add_generation_prompt"] and expected.endswith("<|turn>model\n")
        silent = opened and not arguments["enable_thinking"]
        assert large == expected + (EMPTY_THOUGHT if silent else "")
        endings.add(expected[-8:])
    assert len(endings) > 3, "the conversations must end in different ways"


def test_helpers_that_templates_expect() -> None:
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
        "{{ tools | tojson }}{{ bos_token }}{{ add_generation_prompt }}{{ flag }}"
        "{{ strftime_now('%Y') | length }}"
    )
    template = ChatTemplate.from_source(source)
    text = template.render([*MESSAGES, *MESSAGES], tools=[{"a": "<\u00e9>"}], flag="F")
    assert text == 'Hi[{"a": "<\u00e9>"}]<bos>TrueF4'


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ raise_exception('no tools here') }}",
        "{{ missing.field }}",
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
    ],
)
def test_hostile_or_broken_templates(source: str) -> None:
    messages = [dict(m) for m in MESSAGES]
    with pytest.raises(UserError, match="rejects these messages"):
        ChatTemplate.from_source(source).render(messages)
    assert messages == MESSAGES


def test_where_templates_are_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no chat template here"):
        ChatTemplate.load(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"chat_template": [{"name": "default", "template": "from a list"}]}')
    assert ChatTemplate.load(tmp_path).render(MESSAGES) == "from a list"
    config.write_text('{"chat_template": "from config"}')
    assert ChatTemplate.load(tmp_path).render(MESSAGES) == "from config"
    (tmp_path / "chat_template.jinja").write_text("from jinja")
    assert ChatTemplate.load(tmp_path).render(MESSAGES) == "from jinja"
    assert ChatTemplate.load(tmp_path / "chat_template.jinja").render(MESSAGES) == "from jinja"


def test_damaged_templates(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 2"):
        ChatTemplate.from_source("ok\n{% if %}")
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        ChatTemplate.load(tmp_path)
