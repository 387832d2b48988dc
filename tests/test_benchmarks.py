"""Programs that measure run, and what they compare agrees where the truth is known: on this CPU."""

import dataclasses
import json

import jax
import pytest

from benchmarks import gpu_train, kernels, soak


def lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_kernels_are_measured_against_float32(capsys):
    kernels.main(["--only", "e2b-sliding-packed-images", "experts-lora", "--repeat", "1"])
    found = lines(capsys)
    assert [(one["case"], one["implementation"]) for one in found] == [
        ("e2b-sliding-packed-images", "xla"),
        ("e2b-sliding-packed-images", "triton"),
        ("e2b-sliding-packed-images", "splash"),
        ("experts-lora", "ragged_dot"),
        ("experts-lora", "blocks"),
        ("experts-lora", "triton"),
    ]
    for one in found:
        if one["implementation"] == "splash":
            assert one["refused"] == "images are seen both ways"
            continue
        gradients = 3 if "heads" in one else 2
        assert len(one["gradient_errors"]) == gradients
        assert max(one["error"], *one["gradient_errors"]) < 1e-5
        assert one["ms_forward"] > 0 and one["tflops_both"] >= 0


def test_what_an_implementation_does_wrong_is_its_failure(capsys, monkeypatch):
    """Named apart from a refusal; and the run fails with it where training has no other."""

    def out_of_memory(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: no memory")

    def no_such_shape(*_, **__):
        raise NotImplementedError("no such shape")

    monkeypatch.setattr(kernels, "triton_grouped_matmul", out_of_memory)
    monkeypatch.setattr(jax.lax, "ragged_dot", no_such_shape)
    kernels.main(["--only", "experts-lora", "--repeat", "1"])
    found = {one["implementation"]: one for one in lines(capsys)}
    assert found["triton"]["failed"] == "RuntimeError: RESOURCE_EXHAUSTED: no memory"
    assert found["ragged_dot"]["refused"] == "NotImplementedError: no such shape"
    assert found["blocks"]["ms_both"] > 0

    real = kernels._experts

    def broken(*args):
        case = real(*args)
        return dataclasses.replace(case, choices=case.choices | {"blocks": no_such_shape})

    monkeypatch.setattr(kernels, "_experts", broken)
    with pytest.raises(SystemExit, match="default implementation failed: experts-lora"):
        kernels.main(["--only", "experts-lora", "--repeat", "1"])
    found = {one["implementation"]: one for one in lines(capsys)}
    assert found["blocks"]["failed"] == "NotImplementedError: no such shape"


def test_a_soak_without_time_is_refused(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["soak", "--minutes", "-1"])
    with pytest.raises(SystemExit) as leaving:
        soak.main()
    assert leaving.value.code == 2
    assert capsys.readouterr().err == "error: --minutes must be above 0, got -1\n"


def test_the_matrix_has_every_kind_of_layer():
    names = [name for name, _ in kernels.attention_cases(128)]
    assert len(names) == len(set(names)) == 4 * 4 + 5 * 2
    assert {"12b-full-packed", "26b-a4b-full-plain", "31b-sliding-images"} <= set(names)


def test_a_step_is_measured(capsys):
    args = ["--model", "tiny-dense", "--seq", "32", "--batch", "2", "--repeat", "1"]
    gpu_train.main([*args, "--case", "dpo-lora-triton"])
    (step,) = lines(capsys)
    assert step["first_loss"] == pytest.approx(0.6931, abs=1e-3)  # adapters start as their base
    assert step["mfu"] is None and step["tokens_per_second"] > 0 and step["peak_gib"] > 0


def test_parity_is_the_largest_difference():
    here = {"case": "a", "losses": [2.0, 1.0], "gradient_norms": [3.0, 4.0]}
    there = {**here, "losses": [2.0, 1.25]}
    found = gpu_train.compared(here, there)
    assert found["differences"] == {"losses": 0.2, "gradient_norms": 0}
    assert found["losses"] == here["losses"] and found["cpu"]["losses"] == there["losses"]
    failed = {"case": "a", "error": "no memory"}
    assert gpu_train.compared(here, failed) is failed is gpu_train.compared(failed, there)


def test_a_case_that_is_none_is_named(capsys):
    for program, words in ((kernels, "e2b-full"), (gpu_train, "sft-lora-xla")):
        with pytest.raises(SystemExit):
            program.main(["--only", "e3b"])
        assert words in capsys.readouterr().err
