"""Properties that plans on machines must have, whatever the assumed figures are."""

import dataclasses
import math

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.model.adapters import LoRA
from gemma4_jax.plan import network
from gemma4_jax.plan.memory import bytes_by_part, peak
from gemma4_jax.plan.search import ROOM, best_by_mesh, search
from gemma4_jax.plan.speed import Assumptions, step_time, work
from gemma4_jax.plan.traffic import Exchange, by_axes, exchanges, sequence_bytes
from gemma4_jax.plan.workload import Workload, check, sizes_of
from gemma4_jax.presets import preset
from gemma4_jax.topology import parse

ALL_OF_THE_LINK = Assumptions(products=1.0, grouped=1.0, attention=1.0, bandwidth=1.0, links=1.0)


def planned(name="31b", mesh=None, **changes):
    given = {"config": preset(name), "tokens": 8192, "rows": 64, "sizes": sizes_of(mesh or {})}
    return Workload(**(given | changes))


@pytest.mark.parametrize(
    ("name", "machine", "changes"),
    [
        ("31b", "v5p-256", {"tokens": 262_144, "rows": 16}),
        ("26b-a4b", "tpu7x-64", {"tokens": 4096, "rows": 512}),
        ("12b", "h100-8", {"rows": 16}),
        ("31b", "v5e-16", {"task": "decode", "param_dtype": "bfloat16", "rows": 8}),
    ],
)
def test_candidates_fit_divide_and_use_every_device(name, machine, changes):
    topology, asked = parse(machine), planned(name, **changes)
    found = search(asked, topology)
    assert found.candidates
    for candidate in found.candidates:
        w = candidate.workload
        check(w)
        assert w.devices == topology.devices
        assert candidate.peak == peak(bytes_by_part(w)) <= ROOM * topology.memory
        assert candidate.time == step_time(w, topology)
    times = [candidate.time.step for candidate in found.candidates]
    assert times == sorted(times)
    listed = [candidate.workload.sizes for candidate in best_by_mesh(found, 5)]
    assert len(set(listed)) == len(listed) and listed[0] == found.candidates[0].workload.sizes


def test_every_mesh_is_found_or_refused_with_a_reason():
    asked, topology = planned("12b", rows=16), parse("h100-8")
    found = search(asked, topology)
    policies = sum(r.count for r in found.refusals if "GB a device" in r.reason)
    illegal = sum(r.count for r in found.refusals if "GB a device" not in r.reason)
    assert found.tried == math.comb(3 + 4, 4)  # 8 = 2^3 over five axes
    assert 3 * (found.tried - illegal) == len(found.candidates) + policies
    assert any("no" in r.reason and "expert" in r.reason for r in found.refusals) or illegal
    assert all(r.example for r in found.refusals)


def test_what_cannot_fit_says_by_how_much():
    found = search(planned("31b", rows=8), parse("v5e-8"))
    assert found.candidates == []
    assert any("of 17.2 GB" in r.reason and "GB" in r.example for r in found.refusals)


def test_memory_grows_and_shrinks_as_it_should():
    base = planned("12b", {"fsdp": 4})
    top = peak(bytes_by_part(base))
    longer = dataclasses.replace(base, tokens=16_384)
    assert peak(bytes_by_part(longer)) > top
    in_parts = dataclasses.replace(base, accumulation=8)
    assert bytes_by_part(in_parts)["activations"] * 8 == bytes_by_part(base)["activations"]
    for wider in ({"fsdp": 8}, {"fsdp": 4, "seq": 2}, {"fsdp": 4, "tensor": 2}):
        assert peak(bytes_by_part(dataclasses.replace(base, sizes=sizes_of(wider)))) < top
    kept = [
        bytes_by_part(dataclasses.replace(base, remat=r))["activations"]
        for r in ("full", "dots", "none")
    ]
    assert kept == sorted(kept) and len(set(kept)) == 3
    lora = dataclasses.replace(base, lora=LoRA(rank=16), param_dtype="bfloat16")
    packed = dataclasses.replace(lora, base="nf4")
    sizes = [bytes_by_part(w)["weights"] for w in (packed, lora, base)]
    assert sizes == sorted(sizes)


def test_a_mesh_of_one_exchanges_nothing():
    assert exchanges(planned("26b-a4b")) == []


def test_what_31b_exchanges_per_full_layer_at_256k():
    """640 numbers a head and token around the ring instead of 1024, and never more than two shards at once."""
    w = planned(mesh={"fsdp": 4, "seq": 16}, tokens=262_144, rows=4)
    full = next(layer for layer in w.config.layers if layer.kind == "full")
    sliding = w.config.layers[0]
    way, sent, _ = sequence_bytes(w, full, 2)
    assert way == "ring" and sent == 15 * 262_144 // 16 * 4 * 640 * 2
    way, sent, _ = sequence_bytes(w, sliding, 2)
    # Two chunks' halos of W - 1 positions of K and V.
    assert way == "halo" and sent == 2 * 1023 * 16 * 512 * 2


def test_experts_send_routed_rows():
    w = planned("26b-a4b", {"expert": 8}, tokens=4096, rows=8)
    [found] = [e for e in exchanges(w) if e.cause == "experts"]
    # There and back; forward, again, backward; 30 layers; 7 of 8 rows leave; 8 experts a token; bfloat16.
    assert found.sent == 2 * 3 * 30 * 7 / 8 * 4096 * 8 * 2816 * 2
    [padded] = [e for e in exchanges(w, ragged=False) if e.cause == "experts"]
    assert padded.sent == 2 * found.sent


def test_gathers_grow_with_micro_batches_and_sums_do_not():
    once = by_axes(exchanges(planned(mesh={"fsdp": 8})))
    often = by_axes(exchanges(planned(mesh={"fsdp": 8}, accumulation=8)))
    assert often["fsdp",] > 7 * once["fsdp",] * 0.9
    tensor = [
        sum(
            e.sent
            for e in exchanges(planned(mesh={"tensor": 8}, accumulation=n))
            if e.cause == "tensor sums"
        )
        for n in (1, 8)
    ]
    assert tensor[0] == tensor[1]


def test_limits_are_below_predictions_and_mfu_below_one():
    for machine, mesh in (("tpu7x-64", {"fsdp": 128}), ("h100-64", {"fsdp": 8, "tensor": 8})):
        w = planned(mesh=mesh, rows=128)
        time = step_time(w, parse(machine))
        assert time.compute <= time.products <= time.step and time.memory <= time.traffic
        assert 0 < time.mfu < 1
        faster = step_time(w, parse(machine), ALL_OF_THE_LINK)
        assert faster.step < time.step


def test_work_is_shared_evenly():
    one, many = (
        work(planned(rows=64)),
        work(planned(mesh={"fsdp": 8, "seq": 2, "tensor": 4}, rows=64)),
    )
    assert many.useful * 64 == pytest.approx(one.useful)


def test_an_axis_has_the_links_of_its_dimensions():
    lines = network.lay_out(parse("v5p-128"), sizes_of({"fsdp": 16, "tensor": 4}))
    assert lines["tensor"].bandwidth == 2 * 100e9  # one ring, both ways
    assert lines["fsdp"].bandwidth == 4 * 100e9
    # Without rings one way each; and what leaves a host of GPUs goes through its adapters.
    assert network.lay_out(parse("v5e-16"), sizes_of({"fsdp": 4}))["fsdp"].bandwidth == 50e9
    gpus = network.lay_out(parse("h100-64"), sizes_of({"fsdp": 8, "tensor": 8}))
    assert (gpus["tensor"].bandwidth, gpus["fsdp"].bandwidth) == (450e9, 50e9)
    seconds = network.seconds(Exchange("weights", "all-gather", ("fsdp",), 50e9, 0), gpus)
    assert seconds == 1.0


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"mesh": {"expert": 2}}, "31b has no experts"),
        ({"mesh": {"fsdp": 128}}, "does not divide the 64 rows"),
        ({"mesh": {"seq": 8}, "tokens": 1000}, "does not divide rows of 1000 tokens"),
        ({"mesh": {"tensor": 64}}, "does not divide the 32 of axis 'heads'"),
        ({"mesh": {"tensors": 2}}, "did you mean 'tensor'?"),
        ({"tokens": 300_000}, "from 1 to 262144"),
        ({"rows": 0}, "at least 1"),
    ],
)
def test_mistakes(changes, part):
    with pytest.raises(UserError, match=part):
        check(planned(**changes))
