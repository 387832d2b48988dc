"""Which model a folder holds, in a few characters, without reading all of it.

A fingerprint is of the configuration, the tokenizer, and names, shapes and a sample of the numbers of the
tensors: blocks spread evenly over every file, so that any training changes it, and a folder of 60 GB takes a
moment. It tells models apart; it does not prove that a file is undamaged.
"""

import hashlib
from pathlib import Path

from gemma4_jax.errors import UserError

_BLOCK = 4096
_BLOCKS = 64


def fingerprint(folder: str | Path) -> str:
    """16 hexadecimal digits. Raises UserError for a folder that is not there."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"there is no model folder {root}")
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root)} {size} ".encode())
        with file.open("rb") as handle:
            for i in range(_BLOCKS):
                handle.seek(i * max(size - _BLOCK, 0) // (_BLOCKS - 1))
                digest.update(handle.read(_BLOCK))
                if size <= _BLOCK:
                    break
    return digest.hexdigest()
