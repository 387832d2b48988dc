"""The rules about who may import whom hold, are complete, and would notice a breach."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

NEVER_IMPORTED = {"tests", "benchmarks", "docs"}  # they stand on the others; nobody on them
GENERATED = {"build", "dist", "runs"}
ROOT = Path(__file__).resolve().parent.parent


def source_packages(repository: Path) -> set[str]:
    """Top-level folders with Python in them, an `__init__.py` or not."""
    folders = [path for path in repository.iterdir() if path.is_dir()]
    visible = {path.name for path in folders if not path.name.startswith(".")}
    names = visible - NEVER_IMPORTED - GENERATED
    return {name for name in names if any((repository / name).rglob("*.py"))}


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_package_is_under_the_import_rules(repository):
    settings = tomllib.loads((repository / "pyproject.toml").read_text())
    assert set(settings["tool"]["importlinter"]["root_packages"]) == source_packages(repository)


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gemma4_jax/errors.py", "import train"),
        ("gemma4_jax/errors.py", "import configs"),
        ("gemma4_jax/model/rope.py", "import gemma4_jax.checkpoint"),
        ("gemma4_jax/model/rope.py", "import gemma4_jax.sample"),
        ("gemma4_jax/model/rope.py", "import gemma4_jax.text"),
        ("configs/schema.py", "import numpy"),
        ("configs/schema.py", "import gemma4_jax.model.layers"),
        ("train/data/__init__.py", "import transformers"),
        ("train/data/__init__.py", "import examples"),
    ],
)
def test_a_forbidden_import_is_noticed(repository, tmp_path, module, line):
    for package in source_packages(repository):
        shutil.copytree(
            repository / package,
            tmp_path / package,
            ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")],
        )
    shutil.copy(repository / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"\n{line}\n")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = run([*command, "--no-cache"], tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert " 0 broken" not in done.stdout and "broken." in done.stdout, done.stdout


@pytest.mark.parametrize("package", [p for p in ("configs", "launch") if (ROOT / p).is_dir()])
def test_describing_a_run_loads_nothing_heavy(repository, package):
    """Every module of the package, imported for real: only the standard library, tyro and ours."""
    folder = repository / package
    names = [".".join(p.relative_to(repository).with_suffix("").parts) for p in folder.glob("*.py")]
    names = sorted(name.removesuffix(".__init__") for name in names)
    assert names
    program = f"""
import sys, json, importlib, tyro
before = set(sys.modules)
for name in {names!r}:
    importlib.import_module(name)
added = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(added - sys.stdlib_module_names)))
"""
    done = run([sys.executable, "-c", program], repository)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) <= {package, "configs", "gemma4_jax"}


def test_the_wheel_holds_the_library_alone(repository, tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = run(command, repository)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"gemma4_jax"}
    present = {p.relative_to(repository).as_posix() for p in data_files(repository / "gemma4_jax")}
    assert present <= set(names)


def data_files(package: Path) -> list[Path]:
    found = []
    for folder, _, names in os.walk(package):
        found += [Path(folder, n) for n in names if "__pycache__" not in folder]
    return [path for path in found if not path.name.startswith(".")]
