"""A file of prompts and of what verifies their answers, read and checked as a whole before anything runs.

    {"id": "a7", "prompt": "What is 12 + 5?", "verifier": {"kind": "number", "answer": 17}}

`prompt`, a question, or `messages`; `tools` that may be called; `thinking`, true or false, instead of
sampling.thinking; `verifier`, whose kinds are those of `gemma4_jax/verify`; `id`, by default the line's number.
Other keys are left alone. Not here: asking the prompts (answers.py).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.verifiable import VerifyConfig
from gemma4_jax.data.jsonl import JsonlFile
from gemma4_jax.errors import UserError
from gemma4_jax.text.messages import read_messages, read_tools
from train.verifiable.verdicts import Verifiers, Verify


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt. thinking: as the row says it, None if it does not. kind: of its verifier; verify: judges an
    output, given the prompt's text."""

    id: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None
    thinking: bool | None
    kind: str
    verify: Verify


@dataclass(frozen=True, kw_only=True)
class PromptFile:
    """The prompts of a file in order. digest: of its bytes."""

    name: str
    prompts: list[Prompt]
    digest: str


def read_prompts(path: str | Path, config: VerifyConfig) -> PromptFile:
    """All prompts of a JSONL file. config: of their verifiers; files these name are beside the prompts.

    Raises UserError, one line that names the line and the field, for the first that cannot be used.
    """
    path = Path(path)
    verifiers = Verifiers(config, path.parent)
    try:
        rows = JsonlFile(path)
        digest = hashlib.blake2b(path.read_bytes(), digest_size=12).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read the prompts {path}: {error.strerror}") from None
    found: dict[str, Prompt] = {}
    lines: dict[str, int] = {}
    for i in range(len(rows)):
        number = rows.number(i)
        try:
            prompt = _read(rows[i], number, verifiers)
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        if prompt.id in found:
            raise UserError(
                f"{path}, line {number}: id {prompt.id!r} is that of line {lines[prompt.id]}; ids must differ"
            )
        found[prompt.id], lines[prompt.id] = prompt, number
    rows.close()
    if not found:
        raise UserError(f"{path} has no prompts")
    verifiers.check({prompt.kind for prompt in found.values()})
    return PromptFile(name=path.stem, prompts=list(found.values()), digest=digest)


def _read(row: Mapping[str, Any], number: int, verifiers: Verifiers) -> Prompt:
    given = [name for name in ("messages", "prompt") if name in row]
    if len(given) != 1:
        raise UserError(
            f"a row needs either messages or prompt (keys here: {', '.join(row) or 'none'})"
        )
    messages = row[given[0]]
    if given == ["prompt"] and isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{given[0]} must be a list of messages, got {_shown(messages)}")
    if read_messages(messages)[-1].role == "assistant":
        raise UserError(f"{given[0]} must end with what is to be answered, not with an assistant")
    tools = row.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or not tools:
            raise UserError(f"tools must be a list of tools, got {_shown(tools)}")
        read_tools(tools)
    thinking = row.get("thinking")
    if not isinstance(thinking, bool | None):
        raise UserError(f"thinking must be true or false, got {_shown(thinking)}")
    name = row.get("id", number)
    if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
        raise UserError(f"id must be a text or a whole number, got {_shown(name)}")
    if "verifier" not in row:
        raise UserError(f"the row has no verifier (keys here: {', '.join(row)})")
    return Prompt(
        id=str(name),
        messages=messages,
        tools=tools,
        thinking=thinking,
        verify=verifiers.of(row),
        kind=row["verifier"]["kind"],
    )


def _shown(value: Any) -> str:
    return f"{value!r:.60}"
