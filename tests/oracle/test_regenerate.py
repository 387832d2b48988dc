"""The committed oracle fixtures are what live transformers says."""

import platform
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.oracle.cases import TEXT_CASES, load_case, read_arrays, read_json

CASES = (*TEXT_CASES, "draft")


@pytest.fixture(scope="module")
def regenerated(transformers, repository, tmp_path_factory):
    """All cases made anew; in their own process, as the generator sets torch's global switches."""
    folder = tmp_path_factory.mktemp("oracle")
    command = [sys.executable, "-m", "tests.oracle.make_text_oracle", "--out", str(folder)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_generator(regenerated, name):
    committed = load_case(name).folder / "model.safetensors"
    fresh = regenerated / name / "model.safetensors"
    expected, found = load_file(committed), load_file(fresh)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=0, atol=1e-6, err_msg=key)
    if platform.machine() == "x86_64":  # elsewhere torch.randn may round differently
        assert committed.read_bytes() == fresh.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_configs_are_those_of_the_generator(regenerated, name):
    case = load_case(name)
    for file, committed in (
        ("config.json", case.config),
        ("config_release.json", case.config_release),
    ):
        fresh = read_json(regenerated / name / file)
        # the extra pins the minor release of transformers alone
        assert {**fresh, "transformers_version": committed["transformers_version"]} == committed


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_vectors_are_what_transformers_computes(regenerated, name):
    expected, found = load_case(name).vectors, read_arrays(regenerated / name / "vectors.npz")
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        if value.dtype.kind == "f":  # matmuls round differently from one torch build to another
            bound = 1e-5 * max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(found[key], value, rtol=0, atol=bound, err_msg=key)
        else:
            np.testing.assert_array_equal(found[key], value, err_msg=key)
