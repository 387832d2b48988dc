"""The table of tensor names against the parameter tree, for every preset."""

import math
from collections import Counter
from typing import Any

import jax
import pytest

from gemma4_jax.checkpoint.huggingface import TextTensor, text_tensors
from gemma4_jax.model.transformer import abstract_params
from gemma4_jax.presets import PRESETS, preset


def elements(tensor: TextTensor) -> int:
    return math.prod(tensor.shape)


def leaves(tree: Any) -> dict[tuple[str, ...], Any]:
    return {
        tuple(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.mark.parametrize("name", PRESETS)
def test_every_element_of_every_leaf_has_one_place(name: str) -> None:
    config = preset(name)
    params = leaves(abstract_params(config))
    filled: Counter[tuple[str, ...]] = Counter()
    for tensor in text_tensors(config):
        stack, rows, columns = tensor.matrices
        covered = [range(*(part.rows or (0, rows))) for part in tensor.parts]
        assert [row for span in covered for row in span] == list(range(rows))
        for part, span in zip(tensor.parts, covered, strict=True):
            filled[part.path] += stack * len(span) * columns
    assert {path: leaf.size for path, leaf in params.items()} == dict(filled)


# Spec section 8; the totals are the Hub's own counts less towers and unused K/V.
SECTION_8 = {
    "e2b": {
        "token table": 402_653_184, "PLE table": 2_348_810_240, "attention": 278_412_288,
        "dense MLP": 1_557_135_360, "experts": 0, "router": 0, "PLE in layers": 27_578_880,
        "PLE context": 13_762_816, "norms, scalars": 216_611, "total": 4_628_569_379,
    },
    "e4b": {
        "token table": 671_088_640, "PLE table": 2_818_572_288, "attention": 587_222_272,
        "dense MLP": 3_303_014_400, "experts": 0, "router": 0, "PLE in layers": 55_157_760,
        "PLE context": 27_525_376, "norms, scalars": 432_682, "total": 7_463_013_418,
    },
    "12b": {
        "token table": 1_006_632_960, "PLE table": 0, "attention": 2_406_510_592,
        "dense MLP": 8_493_465_600, "experts": 0, "router": 0, "PLE in layers": 0,
        "PLE context": 0, "norms, scalars": 741_168, "total": 11_907_350_320,
    },
    "26b-a4b": {
        "token table": 738_197_504, "PLE table": 0, "attention": 1_110_197_760,
        "dense MLP": 535_265_280, "experts": 22_837_985_280, "router": 10_901_760,
        "PLE in layers": 0, "PLE context": 0, "norms, scalars": 594_206, "total": 25_233_141_790,
    },
    "31b": {
        "token table": 1_409_286_144, "PLE table": 0, "attention": 8_477_772_800,
        "dense MLP": 20_808_990_720, "experts": 0, "router": 0, "PLE in layers": 0,
        "PLE context": 0, "norms, scalars": 1_295_676, "total": 30_697_345_340,
    },
}  # fmt: skip


def part_of(path: tuple[str, ...]) -> str:
    """Row of section 8 that a leaf belongs to."""
    match path:
        case ("embed", "table"):
            return "token table"
        case ("per_layer_embed", "table"):
            return "PLE table"
        case ("per_layer_embed", *_):
            return "PLE context"
        case (_, _, "attention", *_):
            return "attention"
        case (_, _, "mlp", *_):
            return "dense MLP"
        case (_, _, "moe", "gate_proj" | "up_proj" | "down_proj"):
            return "experts"
        case (_, _, "moe", *_):
            return "router"
        case (_, _, "per_layer_input", *_):
            return "PLE in layers"
        case _:
            return "norms, scalars"


@pytest.mark.parametrize("name", SECTION_8)
def test_parameter_counts_of_the_released_sizes(name: str) -> None:
    counts = dict.fromkeys(SECTION_8[name], 0)
    for path, leaf in leaves(abstract_params(preset(name))).items():
        counts[part_of(path)] += leaf.size
        counts["total"] += leaf.size
    assert counts == SECTION_8[name]
    assert counts["total"] == sum(map(elements, text_tensors(preset(name))))
