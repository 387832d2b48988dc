"""The three oracle models as folders, loaded once."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from gemma4_jax import checkpoint
from gemma4_jax.build import Model

ORACLE = Path(__file__).parents[1] / "fixtures" / "oracle"


class Case(NamedTuple):
    folder: Path
    model: Model
    vectors: dict[str, np.ndarray]


@pytest.fixture(scope="session", params=["dense", "ple", "moe"])
def case(request: pytest.FixtureRequest) -> Case:
    folder = ORACLE / request.param
    return Case(folder, checkpoint.load(folder), dict(np.load(folder / "vectors.npz")))


@pytest.fixture(scope="session")
def ple() -> Case:
    folder = ORACLE / "ple"
    return Case(folder, checkpoint.load(folder), dict(np.load(folder / "vectors.npz")))
