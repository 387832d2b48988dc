"""A checkpoint's own chat template, run in jinja2's immutable sandbox.

Here: finding the template in a folder and rendering it as Hugging Face does. The result is text:
its control tokens cannot be told from those a user typed, which is why `chat.py` is the default and
this is for when exactly the checkpoint's own format is wanted.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma4_jax.errors import UserError
from gemma4_jax.text import control


class _Generation(Extension):
    """`{% generation %}`, which marks a template's targets: here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class ChatTemplate:
    """A compiled template and where it came from."""

    template: jinja2.Template
    where: str

    @classmethod
    def load(cls, path: str | Path) -> "ChatTemplate":
        """Read a `.jinja` file, or a checkpoint folder's template; UserError if there is none."""
        path = Path(path)
        if path.is_file():
            return cls.from_source(path.read_text("utf-8"), str(path))
        found = find_source(path)
        if found is None:
            raise UserError(
                f"{path}: no chat template here; expected chat_template.jinja, or chat_template in "
                "tokenizer_config.json"
            )
        return cls.from_source(*found)

    @classmethod
    def from_source(cls, source: str, where: str = "chat template") -> "ChatTemplate":
        """Compile a template's text; UserError names the line that jinja2 rejects."""
        try:
            return cls(_environment().from_string(source), where)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{where}, line {error.lineno}: {error.message}") from None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt as text. `variables` are the template's own, such as `enable_thinking`."""
        names = {"bos_token": control.BOS, "eos_token": control.EOS, "pad_token": control.PAD}
        try:
            return self.template.render(
                messages=messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **(names | variables),
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise UserError(f"{self.where} rejects these messages: {error}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Plain JSON: jinja2's own filter escapes characters for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def find_source(folder: Path) -> tuple[str, str] | None:
    """(text, file) of a checkpoint folder's chat template, None if it ships none."""
    if (folder / "chat_template.jinja").is_file():
        file = folder / "chat_template.jinja"
        return file.read_text("utf-8"), str(file)
    for name in ("chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file() and (source := _source_in(folder / name)):
            return source, str(folder / name)
    return None


def _source_in(path: Path) -> str | None:
    """The template inside a JSON file: a string, or the one named "default" of a list."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        raise UserError(f"{path} is not JSON") from None
    found = found.get("chat_template") if isinstance(found, dict) else None
    if isinstance(found, list):
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None
