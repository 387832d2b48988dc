"""What the tests of tasks share: recorded verdicts, and whether there is a sandbox."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures" / "eval"

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="programs need bubblewrap (bwrap) to run in"
)


def load_fixture(name: str) -> Any:
    """A file that make_references.py made."""
    return json.loads(gzip.decompress((FIXTURES / f"{name}.json.gz").read_bytes()))
