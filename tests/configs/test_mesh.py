"""Sizes of mesh axes: what an open axis takes, and one line for what does not fit."""

import itertools
import math
import re

import pytest

from configs import cli, sft
from configs.checks import ConfigError
from configs.mesh import MeshConfig
from configs.schema import BatchConfig, RunConfig, SFTConfig, TrainConfig, flatten
from gemma4_jax.errors import UserError
from train.workdir import Workdir

AXES = ("data", "fsdp", "expert", "seq", "tensor")


@pytest.mark.parametrize(
    ("given", "devices", "sizes"),
    [
        ({}, 1, (1, 1, 1, 1, 1)),
        ({}, 8, (1, 8, 1, 1, 1)),
        ({"data": 4, "tensor": 2}, 128, (4, 16, 1, 1, 2)),
        ({"fsdp": 8, "expert": -1}, 32, (1, 8, 4, 1, 1)),
        ({"fsdp": 1, "seq": -1}, 6, (1, 1, 1, 6, 1)),
        ({"data": 2, "fsdp": 2, "expert": 2, "seq": 2, "tensor": 2}, 32, (2, 2, 2, 2, 2)),
        ({"data": 8}, 8, (8, 1, 1, 1, 1)),
        ({"fsdp": 3}, 8, (1, 3, 1, 1, 1)),  # the other five are left alone
    ],
)
def test_an_open_axis_takes_what_the_others_leave(given, devices, sizes):
    found = MeshConfig(**given).sizes(devices)
    assert tuple(found) == AXES
    assert tuple(found.values()) == sizes


@pytest.mark.parametrize(
    ("given", "devices", "complaint"),
    [
        (
            {"data": -1, "fsdp": 3},
            8,
            "mesh.fsdp is 3; with data=-1, expert=1, seq=1, tensor=1 it must divide the 8 devices: 2 or 4",
        ),
        (
            {"tensor": 16},
            8,
            "mesh.tensor is 16; with data=1, fsdp=-1, expert=1, seq=1 it must divide the 8 devices: 8",
        ),
        (
            {"data": 2, "tensor": 6},
            32,
            "mesh.tensor is 6; with data=2, fsdp=-1, expert=1, seq=1 it must divide 16, its share of 32 "
            "devices: 4 or 8",
        ),
        (
            {"data": 4, "fsdp": 3},
            8,
            "mesh.data 4 x mesh.fsdp 3 is 12, more than the 8 devices; lower one of them, or set it to -1 for "
            "what the others leave",
        ),
        (
            {"data": 3, "tensor": 5},
            8,
            "mesh.data 3 x mesh.tensor 5 is 15; the product must divide the 8 devices: take each from "
            "1, 2, 4, 8",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(given, devices, complaint):
    with pytest.raises(ConfigError, match=f"^{re.escape(complaint)}$"):
        MeshConfig(**given).sizes(devices)


def test_either_the_product_is_the_devices_or_it_is_refused():
    for devices, data, tensor in itertools.product(range(1, 33), (-1, 1, 2, 3, 5, 8), (1, 2, 6)):
        mesh = MeshConfig(data=data, fsdp=2 if data == -1 else -1, tensor=tensor)
        if devices % (2 * tensor if data == -1 else data * tensor):
            with pytest.raises(ConfigError, match=r"^mesh\.[^\n]*$"):
                mesh.sizes(devices)
        else:
            assert math.prod(mesh.sizes(devices).values()) == devices


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"seq": 0}, r"mesh\.seq is 0; it must be at least 1, or -1"),
        ({"fsdp": -2}, r"mesh\.fsdp is -2; it must be at least 1, or -1"),
        ({"data": -1}, r"mesh\.data and mesh\.fsdp are -1; one of them"),
    ],
)
def test_impossible_sizes_are_refused_where_they_are_set(given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        MeshConfig(**given)


def test_it_is_part_of_every_run(capsys):
    assert [n for n, _ in flatten(TrainConfig()) if n.startswith("mesh.")] == [
        f"mesh.{axis}" for axis in AXES
    ]
    needed = ("tiny", "--data.path", "d", "--run.workdir", "w")
    parse = cli.parse("train.sft", sft.PRESETS, (*needed, "--mesh.data", "4"))
    assert parse.mesh == MeshConfig(data=4, fsdp=1)
    with pytest.raises(SystemExit):
        cli.parse("train.sft", sft.PRESETS, (*needed, "--mesh.tensro", "2"))
    assert "did you mean --mesh.tensor?" in capsys.readouterr().err


def test_a_run_goes_on_with_another_mesh(tmp_path):
    def config(**changes):
        return SFTConfig(run=RunConfig(workdir=str(tmp_path)), **changes)

    (Workdir(config()).checkpoints / "1").mkdir()
    Workdir(config(mesh=MeshConfig(data=2, fsdp=-1, expert=2, seq=2, tensor=2)))
    with pytest.raises(UserError, match=r"batch\.rows was 16, is 8"):
        Workdir(config(batch=BatchConfig(rows=8)))
