"""A conversation in a file: what was said, and what the model was told."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gemma4_jax.errors import UserError

_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class SavedChat:
    """messages: as `text.messages` reads them, without the system message."""

    system: str | None
    think: bool
    messages: list[dict[str, Any]] = field(default_factory=list)


def save_chat(path: Path, chat: SavedChat) -> None:
    """Write a conversation, in the place of an older one if there is one; UserError if it cannot be."""
    if path.exists():
        try:
            load_chat(path)
        except UserError:
            raise UserError(
                f"{path} is there and is no saved conversation; give another file"
            ) from None
    beside = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    text = json.dumps({"gemma4_chat": _FORMAT, **asdict(chat)}, ensure_ascii=False, indent=1)
    try:
        beside.write_text(text + "\n", "utf-8")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def load_chat(path: Path) -> SavedChat:
    """A conversation that was saved; UserError for any other file."""
    from gemma4_jax.text.messages import read_messages

    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("gemma4_chat") != _FORMAT:
        raise UserError(f"{path} is no saved conversation")
    system, think = found.get("system"), found.get("think")
    messages: Any = found.get("messages")
    if not isinstance(system, str | None) or not isinstance(think, bool):
        raise UserError(f"{path} is damaged: its system message or its think is of a wrong type")
    read_messages(messages)
    return SavedChat(system=system, think=think, messages=messages)
