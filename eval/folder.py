"""The folder of a run: where things are, and what was run in it with which versions and data.

generations.jsonl     every generation (store.py): the only file that cannot be made again
verdicts/TASK.jsonl   what scoring said of each (verdicts.py)
results.json          scores with intervals (score.py)
run.json              models, benchmarks and their checksums, every start with its configuration and versions
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma4_jax.errors import UserError

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "tokenizers", "sentencepiece", "gemma4_jax")


class RunFolder:
    """Paths, and what run.json says."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.generations = self.path / "generations.jsonl"
        self.results = self.path / "results.json"
        self._about = self.path / "run.json"

    def verdicts(self, task: str) -> Path:
        """File of a benchmark's verdicts."""
        return self.path / "verdicts" / f"{task}.jsonl"

    def about(self) -> dict[str, Any]:
        """What run.json says: tasks (path and sha256), models by fingerprint, cells (what was to be asked),
        notes on back ends, starts, speed."""
        empty: dict[str, Any] = {"tasks": {}, "models": {}}
        empty |= {"cells": [], "notes": [], "starts": [], "speed": []}
        if not self._about.is_file():
            return empty
        try:
            return {**empty, **json.loads(self._about.read_text())}
        except ValueError:
            raise UserError(
                f"{self._about} is damaged; delete it and start the run again"
            ) from None

    def update(self, **changes: Any) -> None:
        """Put changes into run.json."""
        write_json(self._about, {**self.about(), **changes})

    def open_task(
        self, name: str, path: str, sha256: str, options: Mapping[str, str] | None = None
    ) -> None:
        """Note a benchmark's file, and what was asked of it. UserError if this folder has answers to another
        file of that name, or was made with other options."""
        tasks = self.about()["tasks"]
        before = tasks.get(name)
        if before and before["sha256"] != sha256:
            raise UserError(
                f"{self.path} was made with another {name} ({before['path']}, sha256 {before['sha256'][:12]}; "
                f"now {path}, {sha256[:12]}); give another --workdir, or the old file"
            )
        options = dict(options or {})
        if before and before.get("options", {}) != options:
            raise UserError(
                f"{self.path} was made with {_told(before.get('options', {}))} for {name}, now it is "
                f"{_told(options)}; give another --workdir, or the same options"
            )
        self.update(tasks={**tasks, name: {"path": path, "sha256": sha256, "options": options}})

    def note_start(self, config: Any) -> None:
        """Add this start: when, with what configuration and versions."""
        start = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "config": dataclasses.asdict(config),
            "versions": versions(),
            "git": git_commit(),
        }
        self.update(starts=[*self.about()["starts"], start])


def _told(options: Mapping[str, str]) -> str:
    return ", ".join(f"{k} {v}" for k, v in options.items()) or "no options"


def versions() -> dict[str, str]:
    """Of Python and what decides numbers."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of this clone, with "+changes" if files differ from it; None outside of one."""
    here = Path(__file__).parent
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(here), *words], capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changes else "")


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f"{file.name}.tmp-{os.getpid()}")
        temporary.write_text(text, "utf-8", "surrogatepass")
        temporary.replace(file)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
