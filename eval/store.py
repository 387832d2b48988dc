"""Every generation, one JSON line each, kept for good: what a killed run resumes from and scoring reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One sample of one item, as it was generated.

    key: digest of (task, item, sample, messages, settings, model fingerprint). text: everything the model wrote
    after the prompt, control tokens spelt out. thought, answer: its parts; thought is None if it has none.
    truncated: it ended for lack of tokens. unfinished_thought: it ended inside its thought, so it has no answer.
    prompt_tokens, thought_tokens, answer_tokens: lengths. seconds: from its submission to its last token.
    """

    key: str
    task: str
    item: str
    sample: int
    seed: int
    model: str  # fingerprint
    protocol: str
    messages: list[Mapping[str, Any]]
    settings: Mapping[str, Any]
    text: str
    thought: str | None
    answer: str
    finish_reason: str
    truncated: bool
    unfinished_thought: bool
    prompt_tokens: int
    thought_tokens: int
    answer_tokens: int
    seconds: float
