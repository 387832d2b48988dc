"""Adapters as PEFT loads them, and merged: the same logits and gradients, and no delta lost."""

import dataclasses
import functools
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax import checkpoint
from gemma4_jax.build import Model
from gemma4_jax.checkpoint.huggingface import prefix
from gemma4_jax.errors import UserError
from gemma4_jax.model.adapters import (
    TARGETS,
    LoRA,
    adapted_matrices,
    attach,
    init_adapters,
    matrices,
)
from gemma4_jax.model.weights import Adapted, dense, quantize
from tests.checkpoint.conftest import Case
from tests.checkpoint.folders import read_tensors
from tests.checkpoint.test_writing import their_logits

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True, "rank": 3, "alpha": 5.0},
    "dora": {"dora": True, "targets": ("attention", "mlp", "per_layer_input")},
    "attention": {"targets": ("attention",), "dropout": 0.1},
    "experts": {"targets": ("experts",)},
}
# Every variant where it has most to get wrong: per-layer inputs have layers on an axis of their own; experts
# are stored and scaled in a way of their own.
every_variant = pytest.mark.parametrize(
    ("case", "lora"),
    [
        ("dense", "rslora"),
        ("ple", "dora"),
        *(("moe", variant) for variant in ("lora", "rslora", "attention", "experts")),
    ],
    indirect=True,
)
# Of logits, absolute; measured 1.2e-4 at most, and 8e-4 on the ple model, where torch's own two forms,
# adapter and merged, are 3e-4 apart.
LIMITS = {"dense": 2e-4, "ple": 1e-3, "moe": 2e-4}
RELATIVE = 1e-3  # of gradients, as of those that are compared with TRL


@pytest.fixture(scope="session")
def peft(transformers: ModuleType) -> ModuleType:
    return pytest.importorskip("peft", reason="needs peft: pip install -e '.[oracle]'")


@pytest.fixture
def lora(request: pytest.FixtureRequest) -> LoRA:
    return LoRA(**({"rank": 4, "alpha": 6.0, "targets": TARGETS} | VARIANTS[request.param]))


@functools.partial(jax.jit, static_argnums=0)
def compute(module: Any, params: Any, tokens: np.ndarray) -> tuple[jax.Array, Any]:
    """Logits, and the gradient of a made-up loss: one program for all adapters of a model."""

    def value(params: Any) -> tuple[jax.Array, jax.Array]:
        hidden = module.apply({"params": params}, tokens)
        logits = module.apply({"params": params}, hidden, method="logits")
        return (jnp.sin(logits) * slopes(tokens.shape)).sum(), logits

    (_, logits), grads = jax.value_and_grad(value, has_aux=True)(params)
    return logits, grads


def slopes(shape: tuple[int, ...]) -> np.ndarray:
    """Of the made-up loss: what the sines of a token's logits are multiplied by."""
    return np.random.default_rng(1).normal(size=(*shape, 1)) / np.prod(shape)


def drawn(model: Model, lora: LoRA) -> dict[str, Any]:
    """Adapters far enough from 0 that leaving one out would show."""
    rng = np.random.default_rng(5)

    def draw(path: Any, leaf: np.ndarray) -> jax.Array:
        noise = rng.normal(size=leaf.shape)
        is_magnitude = path[-1].key == "magnitude"
        return jnp.asarray(leaf * (1 + 0.1 * noise) if is_magnitude else 0.15 * noise, jnp.float32)

    fresh = jax.jit(functools.partial(init_adapters, model.config, lora, 0))(model.params)
    return jax.tree_util.tree_map_with_path(draw, jax.device_get(fresh))


def with_adapters(model: Model, adapters: dict[str, Any], lora: LoRA) -> Model:
    return dataclasses.replace(model, params=attach(model.params, adapters, lora))


def merged(model: Model, adapters: dict[str, Any], lora: LoRA) -> dict[str, Any]:
    """The model's weights with the adapters in them; tests/train/test_lora.py: the same as beside them."""
    joined = attach(model.params, adapters, lora)
    return jax.tree.map(dense, joined, is_leaf=lambda node: isinstance(node, Adapted))


def load_peft(peft: ModuleType, transformers: ModuleType, base: Path, adapter: Path) -> Any:
    """The base in transformers with the adapter from the folder, every stored tensor in its place."""
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, attn_implementation="eager", dtype=torch.float32
    )
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_experts_implementation"):
            module.config._experts_implementation = "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of keys that are missing
        warnings.simplefilter("error", RuntimeWarning)  # of targets that match nothing
        # It looks for the patterns' matches among modules alone; that they hold is checked below.
        warnings.filterwarnings("ignore", r"The following (rank|alpha)_pattern keys did not match")
        adapted = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
    held = peft.get_peft_model_state_dict(adapted)
    stored = read_tensors(adapter)
    assert held.keys() == stored.keys()
    for name, value in held.items():
        np.testing.assert_array_equal(value.detach().numpy(), stored[name], err_msg=name)
    return adapted.eval()


@pytest.mark.slow
@every_variant
def test_peft_computes_the_same(
    case: Case, lora: LoRA, tmp_path: Path, transformers: ModuleType, peft: ModuleType
) -> None:
    """Logits, and the gradient of every number of the adapter."""
    import torch

    config = case.model.config
    adapters = drawn(case.model, lora)
    checkpoint.save_adapter(tmp_path / "adapter", config, lora, adapters, base=str(case.folder))
    theirs = load_peft(peft, transformers, case.folder, tmp_path / "adapter")

    merge = jax.jit(lambda adapters: merged(case.model, adapters, lora))
    weights, back = jax.vjp(merge, adapters)
    tokens = case.vectors["input_ids"].astype(np.int32)
    logits, weight_grads = compute(case.model.module, weights, tokens)
    (grads,) = back(weight_grads)
    output = theirs(input_ids=torch.from_numpy(tokens).long()).logits
    expected = output.detach().numpy()
    base = case.vectors["logits"]
    assert np.abs(expected - base).max() > 0.5
    np.testing.assert_allclose(logits, expected, rtol=0, atol=LIMITS[case.folder.name])

    (torch.sin(output) * torch.from_numpy(slopes(tokens.shape))).sum().backward()
    checkpoint.save_adapter(tmp_path / "grads", config, lora, grads)
    found = read_tensors(tmp_path / "grads")
    wanted = {
        name.replace(".default", ""): p.grad.numpy()
        for name, p in theirs.named_parameters()
        if "lora_" in name
    }
    wanted = {
        name.removesuffix(".weight") if "magnitude" in name else name: g
        for name, g in wanted.items()
    }
    assert wanted.keys() == found.keys()
    largest = max(np.abs(g).max() for g in wanted.values())
    for name, value in found.items():
        # PEFT's one adapter of gate and up may mix the two; ours is zero there and stays so.
        here = value != 0 if "base_layer.lora_B" in name else np.ones(value.shape, bool)
        error = np.abs(value - wanted[name])[here].max(initial=0)
        assert error <= RELATIVE * np.abs(wanted[name]).max() + 1e-6 * largest, name


@every_variant
def test_a_merged_export_holds_every_delta(
    case: Case, lora: LoRA, tmp_path: Path, transformers: ModuleType
) -> None:
    adapters = drawn(case.model, lora)
    model = with_adapters(case.model, adapters, lora)
    checkpoint.save_huggingface(model, tmp_path / "merged")
    base, stored = read_tensors(case.folder), read_tensors(tmp_path / "merged")
    assert base.keys() == stored.keys()
    changed = {name for name in base if (base[name] != stored[name]).any()}
    same = {name for name in base if base[name].tobytes() == stored[name].tobytes()}
    assert changed | same == base.keys()
    # As many tensors as there are layers with an adapted matrix; gate and up of experts are one there.
    count = 0
    for matrix in adapted_matrices(case.model.config, lora):
        fused = matrix.target == "experts" and matrix.path[-1] == "up_proj"
        count += 0 if fused else int(np.prod(matrix.shape[: matrix.layers]))
    assert len(changed) == count
    start = prefix(case.model.config)
    assert not any("router" in name or "embed_tokens" in name for name in changed)
    if adapted_matrices(case.model.config, lora) == matrices(case.model.config):
        linear = {
            n for n in base if base[n].ndim > 1 and "router" not in n and "embed_tokens" not in n
        }
        assert changed == linear
        for expert in range(8 if case.model.config.moe else 0):
            for part in ("gate_up_proj", "down_proj"):
                name = f"{start}layers.0.experts.{part}"
                assert (base[name][expert] != stored[name][expert]).any()
    if not lora.dora:
        checkpoint.save_adapter(tmp_path / "adapter", case.model.config, lora, adapters)
        adapter = read_tensors(tmp_path / "adapter")
        for name in changed:
            delta = peft_delta(adapter, name, base[name].shape, lora.scale)
            assert np.abs(delta).max() > 0.05
            np.testing.assert_allclose(stored[name] - base[name], delta, rtol=0, atol=2e-6)
    tokens = case.vectors["input_ids"].astype(np.int32)
    weights = jax.jit(lambda adapters: merged(case.model, adapters, lora))(adapters)
    logits, _ = compute(case.model.module, weights, tokens)
    theirs = their_logits(transformers, tmp_path / "merged", tokens)
    np.testing.assert_allclose(logits, theirs, rtol=0, atol=LIMITS[case.folder.name])


def peft_delta(
    stored: dict[str, np.ndarray], name: str, shape: tuple[int, ...], scale: float
) -> np.ndarray:
    """What PEFT adds to the tensor `name` of `shape`: its documented products of its two matrices."""
    nested = {"experts.gate_up_proj": "experts.base_layer", "experts.down_proj": "experts"}
    end = next((end for end in nested if name.endswith(end)), ".weight")
    module = "base_model.model." + name.removesuffix(end) + nested.get(end, "")
    a, b = (stored[f"{module}.lora_{which}.weight"].astype(np.float64) for which in "AB")
    if len(shape) == 2:
        return scale * b @ a
    a, b = a.reshape(shape[0], -1, shape[2]), b.reshape(shape[1], -1, shape[0])
    return scale * np.einsum("ore,eri->eoi", b, a)


def test_a_quantised_base_is_exported_as_it_was_trained_on(ple: Case, tmp_path: Path) -> None:
    lora = LoRA(rank=4, targets=("attention",))
    params = jax.tree.map(lambda leaf: leaf, ple.model.params)
    q_proj = params["segment_0"]["slot_0"]["attention"]["q_proj"]
    packed = quantize(q_proj, "nf4", lead=2, inputs=1)
    params["segment_0"]["slot_0"]["attention"]["q_proj"] = packed
    model = dataclasses.replace(ple.model, params=params)
    adapters = drawn(model, lora)
    checkpoint.save_huggingface(with_adapters(model, adapters, lora), tmp_path / "out")
    found = checkpoint.load(tmp_path / "out").params["segment_0"]["slot_0"]["attention"]["q_proj"]
    joined = attach(params, adapters, lora)["segment_0"]["slot_0"]["attention"]["q_proj"]
    np.testing.assert_allclose(found, dense(joined), atol=1e-6)


def test_what_peft_is_told(case: Case, tmp_path: Path) -> None:
    lora = LoRA(rank=4, alpha=6.0, targets=TARGETS, dropout=0.1)
    adapters = drawn(case.model, lora)
    checkpoint.save_adapter(tmp_path / "out", case.model.config, lora, adapters, base="google/x")
    told = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["base_model_name_or_path"]) == (4, 6.0, "google/x")
    if case.model.config.moe is None:
        assert told["target_parameters"] is None and told["lora_dropout"] == 0.1
    else:
        assert told["target_parameters"] == ["experts.gate_up_proj", "experts.down_proj"]
        assert list(told["rank_pattern"].values()) == [8]
        assert list(told["alpha_pattern"].values()) == [12.0]
        assert told["lora_dropout"] == 0.0
    names = read_tensors(tmp_path / "out")
    assert not any("router" in name for name in names)


def test_only_an_earlier_export_is_replaced(ple: Case, tmp_path: Path) -> None:
    lora = LoRA(rank=2, targets=("mlp",))
    adapters, out = drawn(ple.model, lora), tmp_path / "out"
    for _ in range(2):
        checkpoint.save_adapter(out, ple.model.config, lora, adapters)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note").write_text("x")
    with pytest.raises(UserError, match="exists and is no earlier adapter export"):
        checkpoint.save_adapter(tmp_path / "other", ple.model.config, lora, adapters)
