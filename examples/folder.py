"""The folder of a demo: what it was made with, and results that outlive an interruption.

Here: the refusal to go on with another recipe, and files that appear whole or not at all. Not here:
the folders of training runs, which look after themselves (train/workdir.py).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gemma4_jax.errors import UserError

_MARK = "gemma4_demo.json"


def open_folder(path: Path, recipe: dict[str, Any], fresh: bool) -> Path:
    """Create `path`, or reopen it if it was made with the same recipe.

    recipe: whatever the results depend on; JSON values. fresh: delete what an earlier demo left.
    Raises UserError for a folder that is no demo's, or that was made with another recipe.
    """
    mark = path / _MARK
    try:
        if path.exists() and any(path.iterdir()):
            if not mark.is_file():
                raise UserError(f"{path} is not empty and no demo made it; give another --workdir")
            if fresh:
                shutil.rmtree(path)
            elif json.loads(mark.read_text()) != recipe:
                raise UserError(
                    f"{path} was made with other settings; give --fresh to start over in it, "
                    "or another --workdir"
                )
        path.mkdir(parents=True, exist_ok=True)
        write_text(mark, json.dumps(recipe, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot use {path}: {error.strerror}; give another --workdir") from None
    return path


def write_text(file: Path, text: str) -> None:
    """Write a file by renaming: a kill leaves the old one, or none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.tmp-{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(file)


def write_rows(file: Path, rows: Iterable[Any]) -> None:
    """Write JSONL."""
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(file: Path) -> list[Any]:
    """Rows of a JSONL file."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def rows_of(file: Path, make: Callable[[], Iterable[Any]]) -> list[Any]:
    """Rows of `file`; made, and written, only if it is not there."""
    if not file.is_file():
        write_rows(file, make())
    return read_rows(file)
