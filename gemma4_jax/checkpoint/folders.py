"""Folders that appear whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma4_jax.errors import UserError


@contextmanager
def replacing(
    path: Path, ours: Callable[[Path], bool], what: str, overwrite: bool = False
) -> Iterator[Path]:
    """Yield an empty folder beside `path`; when the block ends well it becomes `path`.

    Whatever stood at `path` goes away then: nothing, an empty folder, a folder that `ours`
    recognises as an earlier `what`, or, with overwrite, any folder. Anything else is a UserError at
    once. If the block raises, `path` is as before.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give the name of a folder to write {what} to")
    if path.is_dir() and any(path.iterdir()) and not overwrite and not ours(path):
        raise UserError(
            f"{path} exists and is no earlier {what}; choose another folder or pass overwrite=True"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.writing-{os.getpid()}")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
    except OSError as error:
        raise UserError(f"{path.parent}: cannot be written to: {error.strerror}") from None
    try:
        yield fresh
        old = path.with_name(f".{path.name}.replaced-{os.getpid()}")
        if path.exists():
            path.rename(old)
        fresh.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
