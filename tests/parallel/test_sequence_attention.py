"""Attention over cut rows is `dense_attention` over whole ones; what travels and what is held is counted."""

import dataclasses
import math
import re
from collections import Counter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gemma4_jax.errors import UserError
from gemma4_jax.hlo import travels
from gemma4_jax.model.attention import KeyValues, attend, dense_attention, rotated_slice
from gemma4_jax.model.rope import rotation
from gemma4_jax.model.visibility import EMPTY, TokenFacts, media_blocks
from gemma4_jax.parallel import sequence_attention, zigzag
from gemma4_jax.parallel.sequence_attention import sequence_attend
from gemma4_jax.parallel.sequence_exchange import full_layer_exchange
from gemma4_jax.presets import preset
from gemma4_jax.sharding import BATCH, make_mesh

CONFIG = preset("tiny-dense")
BATCH_SIZE, TOKENS, HEADS, KV_HEADS, HEAD_DIM = 2, 64, 4, 2, 16


class Case(NamedTuple):
    mesh: dict[str, int]
    facts: str = "plain"
    window: int | None = None
    implied: bool = False  # K by V
    whole: str | None = None
    tile: int = 512
    media: int = sequence_attention.MEDIA_BLOCK
    two_sided: bool = False
    kv_heads: int = KV_HEADS


# Of 64 tokens, a chunk is 16 on 2 devices, 8 on 4, 4 on 8; a shard is two chunks.
CASES = {
    "rows-that-do-not-divide": Case({"seq": 2, "fsdp": 4}, whole="ring"),
    "ring-uneven-tiles": Case({"seq": 4}, "packed", whole="ring", tile=3),
    "ring-rows": Case({"seq": 4, "data": 2}, "packed", whole="ring"),
    "ring-tensor-implied": Case({"seq": 2, "fsdp": 2, "tensor": 2}, "packed", None, True, "ring"),
    "ring-8-branches": Case({"seq": 8}, "branches", whole="ring"),
    "ring-encoder": Case({"seq": 4}, "packed", whole="ring", tile=4, two_sided=True),
    "gather-tiles": Case({"seq": 4}, "packed", whole="gather", tile=4),
    "gather-implied": Case({"seq": 8}, "plain", None, True, "gather"),
    "one-kv-head": Case({"seq": 2, "tensor": 4}, "plain", whole="gather", kv_heads=1),
    "kv-heads-repeated": Case({"seq": 2, "tensor": 4}, "packed", None, True, "ring"),
    "window-in-chunk": Case({"seq": 4, "tensor": 2}, "packed", 5),
    "window-of-two": Case({"seq": 2}, "plain", 2),
    "window-over-chunk": Case({"seq": 4, "data": 2}, "packed", 14, tile=3),
    "window-over-shard": Case({"seq": 8}, "plain", 14),
    "window-over-shard-implied": Case({"seq": 8}, "packed", 10, True),
    "window-over-most": Case({"seq": 2}, "packed", 40, whole="ring"),
    "images": Case({"seq": 4}, "images", 6, tile=4, media=10),
    "images-over-chunk": Case({"seq": 8}, "images", 3, media=10),
    "images-anywhere": Case({"seq": 2}, "images", 6, whole="ring"),
    "images-gathered": Case({"seq": 4}, "images", 6, whole="gather"),
    "images-full-layer": Case({"seq": 2}, "images", None, whole="ring"),
    "branches-window": Case({"seq": 4}, "branches", 6, whole="ring", tile=4),
    "branches-window-gathered": Case({"seq": 2}, "branches", 6, whole="gather"),
    "encoder-window": Case({"seq": 4}, "packed", 9, two_sided=True),
}


def facts_of(kind: str) -> TokenFacts:
    """Facts of two rows in row order."""
    index = np.broadcast_to(np.arange(TOKENS, dtype=np.int32), (BATCH_SIZE, TOKENS)).copy()
    if kind == "plain":
        return TokenFacts(jnp.asarray(index[:1]))
    segment = np.zeros((BATCH_SIZE, TOKENS), np.int32)
    if (
        kind == "branches"
    ):  # a prompt with three answers, then one with two, in the second row shifted
        branch = np.zeros_like(segment)
        sizes = [(1, 0, 17), (1, 1, 9), (1, 2, 11), (1, 3, 3), (2, 0, 4), (2, 1, 6), (2, 2, 7)]
        for row, start in ((0, 0), (1, 5)):
            prompt = 0
            for number, which, size in sizes:
                here = slice(start, start + size)
                segment[row, here], branch[row, here] = number, which
                prompt = size if which == 0 else prompt
                begin = prompt if which else 0
                index[row, here] = np.arange(begin, begin + len(segment[row, here]))
                start += size
        return TokenFacts(*(jnp.asarray(x) for x in (index, segment)), branch=jnp.asarray(branch))
    for row, ends in enumerate([(7, 30, 33, 59), (40, 64)]):  # the first row's end is padding
        for end in ends:
            segment[row, :end] += 1
    segment = segment.max(1, keepdims=True) + 1 - segment
    segment[0, 59:] = 0
    block = None
    if (
        kind == "images"
    ):  # ten tokens at most; across borders of chunks, and two in a row across one
        segment[:] = segment > 0
        kinds = np.zeros_like(segment)
        for row, begin, size in [(0, 3, 10), (0, 14, 4), (0, 27, 10), (1, 30, 5), (1, 46, 10)]:
            kinds[row, begin : begin + size] = 1
        block = media_blocks(jnp.asarray(kinds))
    return TokenFacts(jnp.asarray(index), jnp.asarray(segment), block)


def arrays_of(case: Case, dtype=jnp.float32):
    """(q, kv as a dict of what gradients are taken for, weights of the outputs), in row order."""
    rng = np.random.default_rng(0)

    def draw(heads):
        shape = BATCH_SIZE, TOKENS, heads, HEAD_DIM
        return jnp.asarray(rng.normal(size=shape), jnp.float32).astype(dtype)

    q, value, weights = draw(HEADS), draw(case.kv_heads), draw(HEADS)
    # Scores of unit size: saturated weights would amplify rounding.
    q = q * 0.3
    if not case.implied:
        return q, {"value": value, "key": draw(case.kv_heads)}, weights
    scale = jnp.asarray(rng.uniform(0.3, 1.5, HEAD_DIM), jnp.float32)
    by = rotation(jnp.arange(TOKENS)[None], HEAD_DIM, CONFIG.rope_full)
    rotated = rotated_slice(value, scale, by)
    return q, {"value": value, "rotated": rotated, "key_scale": scale}, weights


def config_of(case: Case):
    either = "vision" if case.facts == "images" else None
    return dataclasses.replace(CONFIG, bidirectional="all" if case.two_sided else either)


def permuted(kv, parts):
    return {n: x if n == "key_scale" else zigzag.zigzag(x, parts) for n, x in kv.items()}


def cut_attend(config, q, kv, facts, window, parts, whole=None):
    """sequence_attend for arrays in row order."""
    inside = zigzag.zigzag(facts, parts)
    moved = KeyValues(facts=inside, **permuted(kv, parts))
    out = sequence_attend(config, zigzag.zigzag(q, parts), moved, inside, window, whole)
    return zigzag.unzigzag(out, parts)


def both_ways(case: Case, monkeypatch, dtype=jnp.float32):
    """Outputs and gradients of the cut rows, and of the reference in float32."""
    monkeypatch.setattr(sequence_attention, "TILE", case.tile)
    monkeypatch.setattr(sequence_attention, "MEDIA_BLOCK", case.media)
    config, facts, parts = config_of(case), facts_of(case.facts), case.mesh["seq"]
    q, kv, weights = arrays_of(case, dtype)
    if case.facts == "branches":  # padding, by position, would see padding after itself
        weights = weights * (facts.segment > 0)[..., None, None]

    def expected(q, kv):
        out = dense_attention(config, q, KeyValues(facts=facts, **kv), facts, case.window)
        return (out * weights).sum(), out

    def cut(q, kv):
        out = cut_attend(config, q, kv, facts, case.window, parts, case.whole)
        return (out * weights).sum(), out

    def run(loss, *arguments):
        (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(*arguments)
        if case.facts == "branches":
            out = out * (facts.segment > 0)[..., None, None]
        return {"out": out, "q": grads[0], **grads[1]}

    with jax.set_mesh(make_mesh(case.mesh)):
        found = run(cut, q, kv)
    q, kv, weights = jax.tree.map(lambda x: x.astype(jnp.float32), (q, kv, weights))
    return found, run(expected, q, kv)


def assert_close(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value, mine = np.asarray(value), np.asarray(found[name], np.float32)
        error = np.abs(mine - value).max() / np.abs(value).max()
        assert error <= tolerance, f"{name}: {error}"


@pytest.mark.parametrize("name", CASES)
def test_cut_rows_equal_whole_ones(name, monkeypatch):
    found, expected = both_ways(CASES[name], monkeypatch)
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["ring-tensor-implied", "window-over-chunk"])
def test_bfloat16_is_rounded_but_right(name, monkeypatch):
    found, expected = both_ways(CASES[name], monkeypatch, jnp.bfloat16)
    assert all(x.dtype == jnp.bfloat16 for n, x in found.items() if n != "key_scale")
    assert_close(found, expected, 2**-6)  # two roundings of 2^-8, one of weights and one of results


@pytest.mark.parametrize(("window", "whole"), [(None, "ring"), (None, "gather"), (5, None)])
def test_rows_that_see_nothing_are_finite_and_give_nothing(window, whole):
    """Padding whose keys are EMPTY: `attend` leaves it undefined, here it is zero."""
    q, kv, weights = arrays_of(Case({}))
    real = jnp.arange(TOKENS) < 45
    facts = facts_of("plain")
    empty = TokenFacts(jnp.where(real[None], facts.index, EMPTY))

    def run(form, weights):
        def loss(q, kv):
            out = form(q, kv)
            return (out * weights).sum(), out

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(q, kv)

    queries = TokenFacts(jnp.where(real[None], facts.index, -1))  # before every key

    def expected(q, kv):
        out = dense_attention(CONFIG, q, KeyValues(facts=empty, **kv), queries, window)
        return jnp.where(real[None, :, None, None], out, 0)

    def cut(q, kv):
        kv = KeyValues(facts=zigzag.zigzag(empty, 4), **permuted(kv, 4))
        inside = zigzag.zigzag(queries, 4)
        out = sequence_attend(CONFIG, zigzag.zigzag(q, 4), kv, inside, window, whole)
        return zigzag.unzigzag(out, 4)

    with jax.set_mesh(make_mesh({"seq": 4})):
        (_, out), grads = run(cut, weights)
    (_, wanted), wanted_grads = run(expected, weights)
    assert not out[:, 45:].any() and not grads[0][:, 45:].any()
    pair = [{"out": o, "q": g[0], **g[1]} for o, g in ((out, grads), (wanted, wanted_grads))]
    assert_close(*pair, 1e-5)


def test_layers_in_a_rematerialised_scan_that_borrow_keys():
    """The gradient of K/V that two scanned layers attend to, a sliding and a full one each, is the sum."""
    q, kv, weights = arrays_of(Case({}))
    facts = facts_of("packed")

    def gradients(form, q, kv, weights, facts):
        def loss(q, kv, scales):
            borrowed = KeyValues(facts=facts, **kv)

            @jax.checkpoint
            def layers(x, scale):
                x = x + form(CONFIG, x * scale, borrowed, facts, 5)
                return x + form(CONFIG, x * scale, borrowed, facts, None), None

            return (jax.lax.scan(layers, q, scales)[0] * weights).sum()

        of_q, of_kv, of_scales = jax.jit(jax.grad(loss, (0, 1, 2)))(q, kv, jnp.array([0.3, 0.5]))
        return {"q": of_q, **of_kv}, {"scales": of_scales}

    expected = gradients(attend, q, kv, weights, facts)
    with jax.set_mesh(make_mesh({"seq": 4})):
        cut = zigzag.zigzag((q, kv, weights, facts), 4)
        found = gradients(sequence_attend, *cut)
    assert_close(zigzag.unzigzag(found[0], 4), expected[0], 1e-5)
    assert_close(found[1], expected[1], 1e-5)


def test_without_a_cut_it_is_attend():
    q, kv, _ = arrays_of(Case({}))
    facts = facts_of("packed")
    kv = KeyValues(facts=facts, **kv)

    def run(form):
        return jax.jit(lambda q, kv: form(CONFIG, q, kv, facts, 5))(q, kv)

    expected = run(attend)
    np.testing.assert_array_equal(run(sequence_attend), expected)
    with jax.set_mesh(make_mesh({"fsdp": 2})):
        np.testing.assert_allclose(run(sequence_attend), expected, atol=1e-6)


# --- order


def test_zigzag_gives_every_device_an_early_and_a_late_chunk():
    row = np.arange(24)[None].repeat(2, 0)
    cut = zigzag.zigzag(row, 3)
    assert isinstance(cut, np.ndarray)
    shards = np.split(cut[0], 3)
    for d, shard in enumerate(shards):
        early, late = 4 * d, 4 * (5 - d)
        assert shard.tolist() == [*range(early, early + 4), *range(late, late + 4)]
    np.testing.assert_array_equal(zigzag.unzigzag(cut, 3), row)
    traced = jax.jit(lambda x: zigzag.zigzag(x, 3))(row)
    np.testing.assert_array_equal(traced, cut)
    np.testing.assert_array_equal(zigzag.zigzag(row.T, 3, axis=0).T, cut)
    facts = zigzag.zigzag(TokenFacts(jnp.asarray(row), jnp.asarray(row + 1)), 3)
    np.testing.assert_array_equal(facts.segment, facts.index + 1)


def test_what_does_not_divide_is_one_line():
    message = (
        r"^mesh\.seq is 4, which cuts rows into 8 equal chunks and does not divide rows of 100 "
        r"tokens; nearest lengths: 96, 104; nearest mesh\.seq: 1, 2, 5$"
    )
    with pytest.raises(UserError, match=message):
        zigzag.zigzag(np.zeros((1, 100)), 4)
    q, kv, facts = jnp.zeros((2, 100, 4, 8)), jnp.zeros((2, 100, 2, 8)), jnp.arange(100)[None]
    facts = TokenFacts(facts)
    with jax.set_mesh(make_mesh({"seq": 4})), pytest.raises(UserError, match=message):
        sequence_attend(CONFIG, q, KeyValues(kv, facts, kv), facts, None)
    q, kv, facts = q[:, :96], kv[:, :96], facts[:, :96]
    with jax.set_mesh(make_mesh({"seq": 2, "tensor": 4})):
        with pytest.raises(UserError, match=r"mesh\.tensor is 4, .* the 6 of axis 'heads'"):
            q6 = jnp.zeros((2, 96, 6, 8))
            sequence_attend(CONFIG, q6, KeyValues(kv, facts, kv), facts, None)
        with pytest.raises(UserError, match=r"mesh\.tensor is 4, .* the 3 of axis 'kv_heads'"):
            q12, kv = jnp.zeros((2, 96, 12, 8)), jnp.zeros((2, 96, 3, 8))
            sequence_attend(CONFIG, q12, KeyValues(kv, facts, kv), facts, None)


def test_small_shards_are_gathered_and_large_ones_go_round():
    # 31B's full layers at 256K on 16 devices, heads over 4: 20 MiB of V and rotated slice a shard.
    assert full_layer_exchange(16384, 16, 1, 640, 2) == "ring"
    assert full_layer_exchange(128, 8, 1, 1024, 2) == "gather"
    # 500 KB cross a link in a step's overhead; of 64 such shards a device would hold too much.
    assert full_layer_exchange(244, 8, 1, 1024, 2) == "gather"
    assert full_layer_exchange(245, 8, 1, 1024, 2) == "ring"
    assert full_layer_exchange(244, 64, 1, 1024, 2) == "ring"


# --- compiled programs


LAYERS = 3


def compiled(case: Case, parts: int, shape: tuple[int, int, int, int, int], grad: bool):
    """The program for cut float32 arrays: of a layer's output, or of the gradients of a scan over layers.

    shape: B, T, N, K, H. In a scan, forward and backward pass are two loops, as in a model.
    """
    batch, tokens, heads, kv_heads, width = shape
    mesh = make_mesh({"seq": parts})
    rows = PartitionSpec(BATCH, "seq")

    def array(*shape, dtype=jnp.float32, spec=rows):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    kv = {"value": array(batch, tokens, kv_heads, width)}
    if case.implied:
        pairs = CONFIG.rope_full.rotated_pairs(width)
        kv["rotated"] = array(batch, tokens, kv_heads, 2 * pairs)
        kv["key_scale"] = array(width, spec=PartitionSpec())
    else:
        kv["key"] = array(batch, tokens, kv_heads, width)
    ids = array(batch, tokens, dtype=jnp.int32)
    config = config_of(case)

    def out(q, kv, index, segment, block):
        facts = TokenFacts(index, segment, block if case.facts == "images" else None)
        return sequence_attend(
            config, q, KeyValues(facts=facts, **kv), facts, case.window, case.whole
        )

    def loss(q, kv, scales, *ids):
        def layer(x, scale):
            return x + out(x, jax.tree.map(lambda y: y * scale, kv), *ids), None

        return (jax.lax.scan(layer, q, scales)[0] ** 2).sum()

    q, scales = array(batch, tokens, heads, width), array(LAYERS, spec=PartitionSpec())
    with jax.set_mesh(mesh):
        if not grad:
            return jax.jit(out).lower(q, kv, ids, ids, ids).compile()
        return jax.jit(jax.grad(loss, (0, 1))).lower(q, kv, scales, ids, ids, ids).compile()


def moved(counts: Counter, kind: str) -> int:
    """Numbers of 4 bytes, "f32" or "s32", that a device sends."""
    return sum(
        times * math.prod(int(n) for n in re.findall(r"\d+", shape.split("[")[1]))
        for (_, shape), times in counts.items()
        if shape.startswith(kind)
    )


SHAPE = 2, 64, 4, 2, 16


@pytest.mark.parametrize(("window", "grad"), [(1, False), (5, False), (5, True), (12, False)])
def test_a_sliding_layer_moves_its_halo_alone(window, grad):
    counts = travels(compiled(Case({}, "packed", window), 4, SHAPE, grad).as_text())
    assert {operation for operation, _ in counts} <= {"collective-permute"}
    # W - 1 positions, left of both chunks, of 2 rows: K and V of 2 heads of 16, index and segment. Beyond 8
    # they come from two chunks, and of those the last device's second chunk finds one on the third device.
    halo = 2 * 2 * (window - 1) + (2 * (window - 9) if window > 9 else 0)
    # The backward pass fetches them again and sends their gradients home.
    assert moved(counts, "f32") == halo * 2 * 2 * 16 * (3 * LAYERS if grad else 1)
    assert moved(counts, "s32") <= halo * 2 * (2 * LAYERS if grad else 1)


def test_a_sliding_layer_with_images_moves_both_halos(monkeypatch):
    monkeypatch.setattr(sequence_attention, "MEDIA_BLOCK", 8)
    counts = travels(compiled(Case({}, "images", 3), 4, SHAPE, False).as_text())
    assert {operation for operation, _ in counts} == {"collective-permute"}
    assert moved(counts, "f32") == 2 * 2 * ((3 - 1) + (8 - 1)) * 2 * 2 * 16


@pytest.mark.parametrize("implied", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_ring_moves_shards_of_what_must_move(implied, grad):
    case = Case({}, "packed", None, implied, "ring")
    counts = travels(compiled(case, 4, SHAPE, grad).as_text())
    # V, and all of K or its rotated slice, of 16 positions of 2 rows and 2 heads.
    width = 16 + (2 * CONFIG.rope_full.rotated_pairs(16) if implied else 16)
    assert width == (20 if implied else 32)
    shard = 2 * 16 * 2 * width
    # P - 1 transfers in each direction, and P of the gradients.
    transfers = LAYERS * (3 + 3 + 4) if grad else 3
    permuted = Counter({k: n for k, n in counts.items() if k[0] == "collective-permute"})
    assert moved(permuted, "f32") == transfers * shard
    # The one thing summed over devices is the gradient of the key scale.
    others = {key for key in counts if key not in permuted}
    assert {operation for operation, _ in others} == ({"all-reduce"} if implied and grad else set())
    assert {shape for _, shape in others} <= {"f32[16]"}


def test_a_gather_gathers_once_each_way():
    forward, backward = (
        travels(compiled(Case({}, "packed", whole="gather"), 4, SHAPE, grad).as_text())
        for grad in (False, True)
    )
    whole = "f32[8,2,8,2,16]"
    assert forward["all-gather", whole] == 2
    assert backward["all-gather", whole] == 4 * LAYERS
    assert "collective-permute" not in {operation for operation, _ in backward}


def test_what_a_device_holds_does_not_grow_with_the_row(monkeypatch):
    """The same shard of a row twice as long: neither gathered K/V nor [T/P, T/P] scores are there."""
    monkeypatch.setattr(sequence_attention, "TILE", 128)
    ring, gather = Case({}, whole="ring"), Case({}, whole="gather")

    def held(case, parts, shard):
        program = compiled(case, parts, (1, parts * shard, 2, 2, 64), True)
        return program.memory_analysis().temp_size_in_bytes

    short, long, longer = held(ring, 4, 4096), held(ring, 8, 4096), held(ring, 4, 8192)
    gathered = held(gather, 8, 4096)
    assert long < 1.02 * short
    assert longer < 2.05 * short
    shard = 2 * 4096 * 2 * 64 * 4  # K and V
    assert gathered - long > 4 * shard
    scores = (
        2 * 8192 * 8192 * 4
    )  # of one of the longer shards by itself; masks of all of it are a quarter
    assert longer < scores / 4
    window = Case({}, window=200)
    assert held(window, 8, 4096) < min(1.02 * held(window, 4, 4096), long)
