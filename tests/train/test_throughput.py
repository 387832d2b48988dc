"""FLOPs per token against parameter counts, and the table of peaks."""

import pytest

from gemma4_jax.model.transformer import num_params
from gemma4_jax.presets import preset
from train.throughput import flops_per_token, peak_flops, training_flops


@pytest.mark.parametrize("name", ["12b", "31b"])
def test_dense_models_do_six_flops_per_parameter_and_token(name):
    config = preset(name)
    # At length 1 attention costs nothing worth counting; norms and scalars are 1e-4 of all.
    assert flops_per_token(config, 1) == pytest.approx(6 * num_params(config), rel=1e-3)


def test_experts_count_as_far_as_they_are_active():
    config = preset("26b-a4b")
    inactive = 30 * 120 * 3 * 2816 * 704
    expected = 6 * (num_params(config) - inactive)
    assert flops_per_token(config, 1) == pytest.approx(expected, rel=1e-3)


def test_lookup_tables_are_no_work():
    config = preset("e2b")
    expected = 6 * (num_params(config) - 2_348_810_240)
    assert flops_per_token(config, 1) == pytest.approx(expected, rel=1e-3)


def test_sliding_layers_stop_growing_with_length():
    config = preset("31b")
    per_key = 6 * 2 * 32 * 512 * 10 / 2
    growth = flops_per_token(config, 200_000) - flops_per_token(config, 100_000)
    assert growth == pytest.approx(per_key * 100_000, rel=0.01)


def test_a_live_reference_is_a_third_more():
    config = preset("e4b")
    assert training_flops(config, 64, forwards=1) == pytest.approx(
        4 / 3 * flops_per_token(config, 64)
    )


def test_peaks():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None
