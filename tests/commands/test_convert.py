"""`gemma4 convert`: there and back, types, and nothing overwritten by accident."""

import numpy as np
import pytest

import gemma4_jax as g4
from gemma4_jax.checkpoint.store import is_store
from tests.checkpoint.folders import read_tensors


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def test_there_and_back(run, model_folder, tmp_path):
    ours, back = tmp_path / "ours", tmp_path / "back"
    result = run("convert", str(model_folder), str(ours))
    assert result.code == 0 and is_store(ours)
    assert "reading" in result.err and "as float32" in result.err and "done" in result.err
    assert run("convert", str(ours), str(back)).code == 0
    assert same(read_tensors(model_folder), read_tensors(back))
    names = {path.name for path in back.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.model"} <= names
    assert g4.load(back).tokenizer.encode("Hello") == g4.load(model_folder).tokenizer.encode(
        "Hello"
    )


def test_types(run, model_folder, tmp_path):
    half, ours, again = tmp_path / "half", tmp_path / "ours", tmp_path / "again"
    run("convert", str(model_folder), str(half), "--to", "huggingface", "--dtype", "bfloat16")
    halves = read_tensors(half)
    assert {tensor.dtype.name for tensor in halves.values()} == {"bfloat16"}
    # What is stored is kept, through a folder of ours as well.
    assert "as bfloat16" in run("convert", str(half), str(ours)).err
    assert "as bfloat16" in run("convert", str(ours), str(again)).err
    assert same(halves, read_tensors(again))


def test_nothing_is_overwritten_unasked(run, complaint, model_folder, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    line = complaint("convert", str(model_folder), str(target))
    assert "exists" in line and "--overwrite" in line
    assert (target / "notes.txt").read_text() == "mine"
    assert run("convert", str(model_folder), str(target), "--overwrite").code == 0
    assert is_store(target) and not (target / "notes.txt").exists()
    assert "--overwrite" in complaint(
        "convert", str(model_folder), str(target)
    )  # ours, all the same


def test_an_empty_folder_is_a_target(run, model_folder, tmp_path):
    assert run("convert", str(model_folder), str(tmp_path)).code == 0
    assert is_store(tmp_path)


@pytest.mark.parametrize("flags", [(), ("--overwrite",)])
def test_the_source_is_safe(complaint, model_folder, flags):
    for target in (model_folder, model_folder.parent):
        assert "SRC itself" in complaint("convert", str(model_folder), str(target), *flags)
    assert (model_folder / "model.safetensors").is_file()


def test_mistakes_are_one_line(complaint, model_folder, tmp_path):
    folder, target = str(model_folder), str(tmp_path / "x")
    assert "no such folder" in complaint("convert", "nowhere", target)
    assert "config.json" in complaint("convert", str(tmp_path), target)
    assert "did you mean 'orbax'?" in complaint("convert", folder, target, "--to", "orbx")
    assert "did you mean --overwrite?" in complaint("convert", folder, target, "--overwite")
    assert "DST" in complaint("convert", folder)
    file = tmp_path / "file"
    file.write_text("x")
    assert "is a file" in complaint("convert", folder, str(file))
    assert "is a file" in complaint("convert", folder, str(file), "--overwrite")
    assert "unknown dtype 'int3'" in complaint("convert", folder, target, "--dtype", "int3")
