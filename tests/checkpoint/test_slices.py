"""A checkpoint read onto a mesh: the same numbers, and of the files no more than the slices need."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding

from gemma4_jax import checkpoint
from gemma4_jax.checkpoint import reading, safetensors
from gemma4_jax.checkpoint.slices import bounds_of
from gemma4_jax.errors import UserError
from gemma4_jax.hf_config import config_to_hf
from gemma4_jax.model.adapters import Quantizer
from gemma4_jax.model.transformer import abstract_params, logical_axes
from gemma4_jax.model.weights import QUANTIZATIONS, Quantized
from gemma4_jax.presets import preset
from gemma4_jax.sharding import DECODING_RULES, RULES, Rules, make_mesh, shardings
from tests.checkpoint.conftest import Case
from tests.checkpoint.folders import copy_folder, random_tensors, write_tensors

MESHES = [
    {"data": 8},
    {"fsdp": 8},
    {"fsdp": 4, "tensor": 2},
    {"fsdp": 2, "expert": 2, "tensor": 2},
]


def name_of(sizes: dict[str, int]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in sizes.items())


def places_of(config: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    return shardings(logical_axes(config), abstract_params(config), mesh, rules)


def same(found: Any, expected: Any) -> None:
    """Equal, and every device's own part is the part that it should have."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)

    def compare(a: jax.Array, b: Any) -> None:
        assert a.dtype == b.dtype
        whole = np.asarray(b)
        for shard in a.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index])

    jax.tree.map(compare, found, expected)


@pytest.mark.parametrize("sizes", MESHES, ids=name_of)
def test_slices_are_those_of_the_whole(case: Case, sizes: dict[str, int]) -> None:
    mesh = make_mesh(sizes)
    model = checkpoint.load(case.folder, mesh=mesh)
    same(model.params, case.model.params)
    places = jax.tree.map(lambda leaf: leaf.sharding, model.params)
    assert places == places_of(case.model.config, mesh, DECODING_RULES)


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_types_shards_and_small_blocks(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    def convert(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: value.astype(ml_dtypes.bfloat16) for name, value in tensors.items()}

    folder, config = copy_folder(case.folder, tmp_path, convert, shards=3), case.model.config
    expected = checkpoint.load_params(folder, config, wanted)
    mesh = make_mesh({"fsdp": 2, "expert": 2, "tensor": 2})
    same(checkpoint.load_params(folder, config, wanted, mesh=mesh), expected)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 200)
    same(checkpoint.load_params(folder, config, wanted, mesh=mesh), expected)


def test_a_folder_of_ours(case: Case, tmp_path: Path) -> None:
    checkpoint.save(case.model, tmp_path / "ours")
    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    params = checkpoint.load(tmp_path / "ours", mesh=mesh).params
    same(params, case.model.params)
    places = jax.tree.map(lambda leaf: leaf.sharding, params)
    assert places == places_of(case.model.config, mesh, DECODING_RULES)


@pytest.mark.parametrize("sizes", MESHES, ids=name_of)
@pytest.mark.parametrize("processes", [2, 4])
def test_a_process_reads_its_share(
    case: Case, monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], processes: int
) -> None:
    """Every process of 2 and of 4: its boxes hold what they should, and every byte of them is read once."""
    config, mesh = case.model.config, make_mesh(sizes)
    read: list[int] = []
    pread = safetensors.pread_into

    def counted(descriptor: int, view: memoryview, *rest: Any) -> None:
        read.append(len(view))
        pread(descriptor, view, *rest)

    monkeypatch.setattr(safetensors, "pread_into", counted)
    # The boxes themselves, in the place of arrays that one process alone cannot make.
    monkeypatch.setattr(reading, "_placed", lambda boxes, place: boxes)
    places = places_of(config, mesh)
    for number in range(processes):
        each = 8 // processes
        devices = mesh.devices.ravel()[number * each : (number + 1) * each]

        def own(shape: Any, place: NamedSharding, devices: Any = devices) -> list[Any]:
            index = place.devices_indices_map(shape)
            return list(dict.fromkeys(bounds_of(shape, index[device]) for device in devices))

        monkeypatch.setattr(reading, "own_bounds", own)
        read.clear()
        found = reading.read_params(case.folder, config, np.dtype(np.float32), places)
        boxes = jax.tree.map(lambda _, held: held, case.model.params, found)
        count = 0
        for leaf, held in zip(
            jax.tree.leaves(case.model.params),
            jax.tree.leaves(boxes, is_leaf=lambda x: isinstance(x, list)),
            strict=True,
        ):
            for box in held:
                index = tuple(slice(*span) for span in box.bounds)
                np.testing.assert_array_equal(box.array, np.asarray(leaf)[index])
                count += box.array.nbytes
        assert sum(read) == count  # the file is float32


@pytest.mark.parametrize("form", QUANTIZATIONS)
@pytest.mark.parametrize("sizes", MESHES[1:], ids=name_of)
def test_slices_are_quantised_as_the_whole_is(
    tmp_path: Path, form: Any, sizes: dict[str, int]
) -> None:
    """Scales go across slices (int8) or lie within them (nf4); a mixture of experts."""
    config = dataclasses.replace(
        preset("tiny-moe"), layer_types=("sliding", "full"), vocab_size=128, d_model=128, d_ff=128
    )
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(config)))
    write_tensors(tmp_path / "model.safetensors", random_tensors(config, np.float32))
    finish, mesh = Quantizer(config, form), make_mesh(sizes)
    whole = checkpoint.load_params(tmp_path, config, finish=finish)
    if form == "nf4" and sizes.get("fsdp", 1) * sizes.get("expert", 1) > 2:
        # o_proj and down_proj: [.., 128] in blocks of 64.
        with pytest.raises(UserError, match="does not divide the 2 of a matrix's blocks"):
            checkpoint.load_params(tmp_path, config, finish=finish, mesh=mesh)
        return
    found = checkpoint.load_params(tmp_path, config, finish=finish, mesh=mesh)
    same(found, whole)
    names = logical_axes(config)["segment_0"]["slot_0"]["attention"]["q_proj"]
    packed = found["segment_0"]["slot_0"]["attention"]["q_proj"]
    assert isinstance(packed, Quantized)
    assert jax.tree.map(lambda leaf: leaf.sharding, packed) == shardings(names, packed, mesh)


def test_a_mesh_of_other_axes_is_one_line(ple: Case) -> None:
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(UserError, match="has the axes d; parameters are cut over data, fsdp, exp"):
        checkpoint.load(ple.folder, mesh=mesh)
    with pytest.raises(UserError, match=r"mesh\.tensor is 3, which does not divide"):
        checkpoint.load(ple.folder, mesh=make_mesh({"tensor": 3}))
