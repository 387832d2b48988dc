"""The rules of the ruff linter as training data: what a rule says, its bad and its good code.

Here: reading `ruff rule --all`, the markdown of an explanation, the split by rule, rows for SFT and
DPO. Not here: code that is not from the documentation (fixes.py), training (train/), scoring
(margins.py). ruff and its documentation: MIT license,
https://github.com/astral-sh/ruff.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma4_jax.errors import UserError

#: One rule in so many is held out.
HELD_OUT_SHARE = 5

#: Characters of a rule's reasons that a prompt repeats; the median is 254.
_MOST_REASONS = 240

_FENCE = re.compile(r"^```\w*[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INSTEAD = re.compile(r"^Use instead[^\n]*:[ \t]*$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A documented rule. bad, good: its example before and after, or "" where it shows none."""

    code: str
    name: str
    summary: str
    what: str
    why: str
    bad: str
    good: str

    @property
    def held_out(self) -> bool:
        """Which side of the split the rule is on, by the hash of its code."""
        digest = hashlib.blake2b(self.code.encode(), digest_size=8).digest()
        return int.from_bytes(digest) % HELD_OUT_SHARE == 0

    @property
    def question(self) -> str:
        """What the model is asked: the rule and its reasons, and code that follows it."""
        return (
            f"{self.name}: {self.summary}\n{_shorten(self.why)}\nShow code that follows the rule."
        )


def find_ruff() -> str | None:
    """The ruff of this environment, else the one on the path, else None."""
    beside = Path(sys.executable).with_name("ruff")
    return str(beside) if beside.exists() else shutil.which("ruff")


def installed_ruff() -> str:
    """`find_ruff`; UserError if there is none."""
    program = find_ruff()
    if program is None:
        raise UserError("no ruff found, whose rules are the data; pip install -e '.[demo-real]'")
    return program


def installed_rules() -> str:
    """What `ruff rule --all --output-format json` prints; UserError if there is no ruff."""
    program = installed_ruff()
    done = subprocess.run(
        [program, "rule", "--all", "--output-format", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(
            f"`{program} rule --all` ended with exit code {done.returncode}: "
            f"{done.stderr.strip()[:200]}; ruff 0.17 or newer is needed"
        )
    return done.stdout


def read_rules(text: str) -> list[Rule]:
    """Rules in ruff's JSON that say what they check, by code."""
    rules = [_rule(entry) for entry in json.loads(text) if entry.get("explanation")]
    return sorted((rule for rule in rules if rule.what), key=lambda rule: rule.code)


def split(rules: Iterable[Rule]) -> tuple[list[Rule], list[Rule]]:
    """(training, held out). Held-out rules show both examples, and none that a training rule shows."""
    train: list[Rule] = []
    held_out: list[Rule] = []
    for rule in rules:
        (held_out if rule.held_out else train).append(rule)
    seen = {code for rule in train for code in (rule.bad, rule.good)}
    fresh = [r for r in held_out if r.bad and r.bad not in seen and r.good not in seen]
    return train, fresh


def sft_rows(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """What each rule checks, in words; and code that follows it, where there is an example."""
    rows = []
    for rule in rules:
        rows.append(_dialogue(f"{rule.name}: {rule.summary}\nWhat does the rule check?", rule.what))
        rows += code_rows([rule])
    return rows


def code_rows(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """Code that follows each rule, where there is an example."""
    return [_dialogue(rule.question, rule.good) for rule in rules if rule.good]


def dpo_rows(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """The good example is chosen, the bad one rejected."""
    return [
        {
            "prompt": [{"role": "user", "content": rule.question}],
            "chosen": [{"role": "assistant", "content": rule.good}],
            "rejected": [{"role": "assistant", "content": rule.bad}],
        }
        for rule in rules
        if rule.bad
    ]


def _rule(entry: dict[str, Any]) -> Rule:
    explanation = entry["explanation"]
    bad, good = _example(explanation)
    return Rule(
        code=entry["code"] or entry["name"],  # the newest rules have a name alone
        name=entry["name"],
        summary=entry["summary"],
        what=_section(explanation, "What it does"),
        why=_section(explanation, r"Why is this bad\?"),
        bad=bad,
        good=good,
    )


def _section(markdown: str, title: str) -> str:
    found = re.search(rf"^## {title}[ \t]*$(.*?)(?=^## |\Z)", markdown, re.DOTALL | re.MULTILINE)
    return found[1].strip() if found else ""


def _example(markdown: str) -> tuple[str, str]:
    """(bad, good): the code blocks on both sides of the first "Use instead:", else ("", "")."""
    before, *after = _INSTEAD.split(_section(markdown, "Examples?"), maxsplit=1)
    blocks: Sequence[Sequence[str]] = [_FENCE.findall(before), *map(_FENCE.findall, after)]
    if len(blocks) < 2 or not all(blocks):
        return "", ""
    bad, good = blocks[0][-1].strip(), blocks[1][0].strip()
    return (bad, good) if bad and good and bad != good else ("", "")


def _shorten(reasons: str) -> str:
    """The first sentences, as many as there is room for; at least one, cut if it must be."""
    text = " ".join(reasons.split("\n\n")[0].split())
    if len(text) <= _MOST_REASONS:
        return text
    end = text.rfind(". ", 0, _MOST_REASONS)
    return text[: end + 1] if end > 0 else text[:_MOST_REASONS].rsplit(" ", 1)[0]


def _dialogue(question: str, answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }
