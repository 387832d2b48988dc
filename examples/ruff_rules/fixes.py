"""What the linter itself changes in real code: lines of Python's standard library, before and after a fix.

Here: running `ruff check`, applying one fix to a few lines, the split by file. Which rules may be trained on is
the caller's choice. The library's code is read where Python is installed and goes nowhere.
"""

import hashlib
import json
import subprocess
import sysconfig
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.ruff_rules.rules import Rule, installed_ruff
from gemma4_jax.errors import UserError

#: One file in so many is held out.
HELD_OUT_SHARE = 4

#: Lines around those that a fix changes, and the most lines and characters of an example.
_AROUND, _MOST_LINES, _MOST_CHARACTERS = 1, 8, 280


@dataclass(frozen=True, kw_only=True)
class Fix:
    """One fix. file: relative to the library. bad, good: the lines before and after it."""

    code: str
    file: str
    bad: str
    good: str

    @property
    def held_out(self) -> bool:
        """Which side of the split its file is on, by the hash of the file's name."""
        return _number(self.file) % HELD_OUT_SHARE == 0


def library_fixes() -> list[Fix]:
    """Of the standard library's own modules, without tests and what was installed beside it."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo", "encodings"}
    found = sorted(root.rglob("*.py"))
    files = [file for file in found if not left_out & set(file.relative_to(root).parts)]
    return find_fixes(installed_ruff(), files, root)


def find_fixes(ruff: str, files: Sequence[Path], root: Path) -> list[Fix]:
    """Every fix that ruff knows for these files and that changes few enough lines, in order of files."""
    command = [ruff, "check", "--isolated", "--no-cache", "--preview", "--select", "ALL"]
    command += ["--target-version", "py311", "--output-format", "json", "--exit-zero"]
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"`{ruff} check` ended with exit code {done.returncode}: {done.stderr.strip()[:200]}"
        )
    by_file: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for violation in json.loads(done.stdout):
        if violation["fix"] and violation["code"]:
            by_file[violation["filename"]].append(violation)
    fixes = []
    for name, violations in sorted(by_file.items()):
        text = Path(name).read_text("utf-8", errors="replace")
        if not text.isascii():  # columns would need counting as ruff counts them
            continue
        lines = text.splitlines(keepends=True)
        relative = str(Path(name).relative_to(root))
        for violation in violations:
            if sides := apply(lines, violation["fix"]["edits"]):
                fixes.append(
                    Fix(code=violation["code"], file=relative, bad=sides[0], good=sides[1])
                )
    return fixes


def apply(lines: Sequence[str], edits: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """(before, after) of the lines that the edits touch and their neighbours; None if that is too much.

    edits: ruff's, `content` in place of what is between `location` and `end_location`, rows and columns from 1.
    """
    first = max(1, min(edit["location"]["row"] for edit in edits) - _AROUND)
    last = min(len(lines), max(edit["end_location"]["row"] for edit in edits) + _AROUND)
    if last - first >= _MOST_LINES:
        return None
    starts = [0]
    for line in lines[first - 1 : last]:
        starts.append(starts[-1] + len(line))

    def offset(place: dict[str, int]) -> int:
        # The end of a deleted last line is the start of the row after it.
        row = min(place["row"] - first, len(starts) - 1)
        return starts[row] + place["column"] - 1

    before = after = "".join(lines[first - 1 : last])
    for edit in sorted(edits, key=lambda edit: offset(edit["location"]), reverse=True):
        start, end = offset(edit["location"]), offset(edit["end_location"])
        after = after[:start] + edit["content"] + after[end:]
    before, after = (textwrap.dedent(text).strip("\n") for text in (before, after))
    fits = max(len(before), len(after)) <= _MOST_CHARACTERS
    return (
        (before, after) if fits and before.strip() and after.strip() and before != after else None
    )


def choose(
    fixes: Iterable[Fix], rules: Iterable[Rule], train: int, held_out: int
) -> tuple[list[Rule], list[Rule]]:
    """(training, held out) examples of the rules, as rules with that code: at most so many for each rule.

    Which ones, and in which order, is by hash, so that rules and files are mixed. Nothing that is held out
    is in training.
    """
    known = {rule.code: rule for rule in rules}
    sides: tuple[list[Rule], list[Rule]] = [], []
    most, taken, seen = (train, held_out), defaultdict[tuple[str, bool], int](int), set[str]()
    # Training first: what is held out must not be there.
    for fix in sorted(fixes, key=lambda fix: (fix.held_out, _number(fix.bad + fix.code))):
        kind = fix.code, fix.held_out
        if fix.code not in known or taken[kind] == most[fix.held_out] or {fix.bad, fix.good} & seen:
            continue
        taken[kind] += 1
        seen |= {fix.bad, fix.good}
        sides[fix.held_out].append(replace(known[fix.code], bad=fix.bad, good=fix.good))
    return sides


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
