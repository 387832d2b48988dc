"""Names of machines: published slices, devices and hosts, what libtpu makes of the same names, mistakes."""

import pytest

from gemma4_jax.chips import CHIPS
from gemma4_jax.errors import UserError
from gemma4_jax.topology import parse

GIB = 2**30


# Google's tables of slices; devices and hosts as libtpu 0.0.42 describes them.
@pytest.mark.parametrize(
    ("name", "libtpu_name", "devices", "processes", "memory"),
    [
        ("v5e-1", None, 1, 1, 16 * GIB),
        ("v5e-4", "v5e:2x2", 4, 1, 16 * GIB),
        ("v5e-8", "v5e:2x4", 8, 2, 16 * GIB),
        ("v5e-16", "v5e:4x4", 16, 4, 16 * GIB),
        ("v6e-256", "v6e:16x16", 256, 64, 32 * GIB),
        ("v5p-8", "v5p:2x2x1", 4, 1, 95 * GIB),
        ("v5p-64", "v5p:2x4x4", 32, 8, 95 * GIB),
        ("v5p-128", "v5p:4x4x4", 64, 16, 95 * GIB),
        ("v5p-256", "v5p:4x4x8", 128, 32, 95 * GIB),
        ("v5p-384", "v5p:4x4x12", 192, 48, 95 * GIB),
        ("v5p-512", "v5p:4x8x8", 256, 64, 95 * GIB),
        ("v5p-12288", "v5p:16x16x24", 6144, 1536, 95 * GIB),
        ("tpu7x-4", "tpu7x:2x2x1", 8, 1, 96 * GIB),
        ("tpu7x-64", "tpu7x:4x4x4", 128, 16, 96 * GIB),
        ("h100-8", None, 8, 1, 80 * 10**9),
        ("h200-64", None, 64, 8, 141 * 10**9),
        ("rtx4090-1", None, 1, 1, 24 * 10**9),
    ],
)
def test_names_of_slices(name, libtpu_name, devices, processes, memory):
    found = parse(name)
    assert (found.libtpu_name, found.devices, found.processes) == (libtpu_name, devices, processes)
    assert found.memory == memory and found.devices == found.chips * found.chip.devices
    if libtpu_name:
        by_shape = parse(libtpu_name)
        assert (by_shape.shape, by_shape.devices) == (found.shape, found.devices)


def test_a_device_of_a_dual_chip_has_half_of_it():
    whole, found = CHIPS["tpu7x"], parse("tpu7x-64")
    assert found.flops * 2 == whole.flops
    assert found.bandwidth * 2 == whole.bandwidth


def test_rings():
    assert parse("v5p-128").wraps == (True, True, True)
    assert parse("v5p-64").wraps == (False, False, False)
    assert parse("v5e:8x16").wraps == (False, True)
    assert parse("v5e-64").wraps == (False, False)


def test_the_links_of_a_chip_are_what_google_states_for_all_of_them():
    both_ways = {name: 4 * c.torus * c.link / 1e9 for name, c in CHIPS.items() if c.torus}
    assert both_ways == {"v5e": 400, "v6e": 800, "v5p": 1200, "tpu7x": 1200}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("v5p-100", ["there is no v5p-100", "v5p-128"]),
        ("v5p-127", ["there is no v5p-127", "v5p-128"]),
        ("v5e-12", ["v5e-8", "v5e-16"]),
        ("h100-12", ["h100-8", "h100-16"]),
        ("rtx4090-64", ["rtx4090-8"]),
        ("v5p:4x4", ["there is no v5p:4x4", "v5p:2x2x4"]),
        ("h100:1x8", ["write h100-8"]),
        ("v7x-64", ["unknown kind of chip 'v7x'", "tpu7x"]),
        ("v5p", ["did you mean v5p-8?", "KIND-N"]),
        ("64", ["kinds: v5e, v5p"]),
    ],
)
def test_mistakes_are_one_line(name, parts):
    with pytest.raises(UserError) as error:
        parse(name)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)
