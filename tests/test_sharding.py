"""Meshes over several slices of a machine."""

import dataclasses

import numpy as np
import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.sharding import AXES, _over_slices


@dataclasses.dataclass(frozen=True)
class Device:
    """What laying out a mesh asks of one."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


DEVICES = [Device(number, number // 8) for number in range(16)]  # two slices of eight


@pytest.mark.parametrize(
    ("sizes", "crossing"),
    [
        ({"data": 2, "fsdp": 8}, "data"),
        ({"data": 4, "tensor": 4}, "data"),
        ({"fsdp": 4, "seq": 4}, "fsdp"),
        ({"fsdp": 2, "expert": 4, "tensor": 2}, "fsdp"),
    ],
)
def test_only_one_axis_crosses_between_slices(sizes, crossing):
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    placed = _over_slices(shape, DEVICES, 2)
    assert placed.shape == shape
    assert sorted(device.id for device in placed.flat) == list(range(16))
    slices = np.vectorize(lambda device: device.slice_index)(placed)
    for number, axis in enumerate(AXES):
        constant = np.all(slices == np.take(slices, [0], axis=number))
        assert constant == (axis != crossing)


def test_four_slices_are_shared_by_two_axes():
    devices = [Device(number, number // 4) for number in range(16)]
    slices = np.vectorize(lambda device: device.slice_index)(
        _over_slices((2, 2, 1, 1, 4), devices, 4)
    )
    assert len(np.unique(slices)) == 4 and np.all(slices == slices[..., :1])


def test_slices_that_no_axis_can_cross():
    with pytest.raises(UserError, match=r"are 2 slices: mesh\.data x mesh\.fsdp must"):
        _over_slices((1, 1, 4, 1, 4), DEVICES, 2)
