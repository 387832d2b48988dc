"""Files that a kill leaves whole: lines that are added one by one under keys, and files that appear at once.

Here: resuming. Not here: what the lines say.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gemma4_jax.errors import UserError

Key = tuple[str, int]  # id of a prompt, number of its answer


class Lines:
    """A JSONL file of objects under (prompt, sample), added to as they come.

    A line that a kill cut short is cut off when the file is opened; what is there is not made again. `note`
    says what the lines depend on, beside the file: lines of another note are refused.
    """

    def __init__(self, path: Path, note: Mapping[str, Any]) -> None:
        """Open or create; UserError if what is there was made otherwise."""
        self.path = path
        beside = path.with_suffix(".settings.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        now = json.loads(json.dumps(dict(note)))
        if path.exists() and path.stat().st_size:
            before = json.loads(beside.read_text()) if beside.exists() else {}
            if before != now:
                name = next(n for n in {**before, **now} if before.get(n) != now.get(n))
                raise UserError(
                    f"{path} was made with {name} {before.get(name)!r}, not {now.get(name)!r}; take the old "
                    "value back, or another run.workdir"
                )
        else:
            write_json(beside, now)
        self.rows = {(row["prompt"], row["sample"]): row for row in _whole_lines(path)}
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, row: dict[str, Any]) -> None:
        """Add a line, at once."""
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        self.rows[row["prompt"], row["sample"]] = row


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    whole = 0
    with path.open("rb") as handle:
        for line in handle:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            yield json.loads(line)
    os.truncate(path, whole)


def write_text(file: Path, text: str) -> None:
    """Write by renaming: a kill leaves the old file, or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp-{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def write_json(file: Path, value: Any) -> None:
    """One JSON value."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(file: Path, rows: Iterable[Any]) -> None:
    """JSONL."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_json(file: Path) -> Any:
    """What `write_json` wrote; None if it is not there."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def read_rows(file: Path) -> list[Any]:
    """What `write_rows` wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
