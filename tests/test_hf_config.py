"""config.json in both dialects and nestings, there and back, against transformers' own reading."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma4_jax.config import FULL, SLIDING, ModelConfig, MoEConfig, RopeConfig, TokenIds
from gemma4_jax.errors import UserError
from gemma4_jax.hf_config import config_from_hf, config_to_hf, generation_to_hf
from gemma4_jax.presets import PRESETS, preset

ORACLE = Path(__file__).parent / "fixtures" / "oracle"
HEAD_KEYS = ("global_head_dim", "num_global_key_value_heads")


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    return config.get("text_config", config)


def respelt(config: ModelConfig) -> dict[str, Any]:
    """`config` as transformers 5.23 saves it: overrides listed layer by layer."""
    saved = config_to_hf(config)
    text = text_of(saved)
    for key in HEAD_KEYS:
        text.pop(key)
    own = {"head_dim": config.global_head_dim, "num_key_value_heads": config.num_global_kv_heads}
    text["per_layer_config"] = {
        str(i): own for i, kind in enumerate(config.layer_types) if kind == FULL
    }
    return saved


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_both_dialects(name: str) -> None:
    config = preset(name)
    assert config_from_hf(config_to_hf(config)) == config
    assert config_from_hf(json.loads(json.dumps(respelt(config)))) == config


@pytest.mark.parametrize("case", ["dense", "ple", "moe"])
def test_oracles_say_the_same_in_both_dialects(case: str) -> None:
    saved = json.loads((ORACLE / case / "config.json").read_text())
    released = json.loads((ORACLE / case / "config_release.json").read_text())
    assert "per_layer_config" in text_of(saved) and "per_layer_config" not in text_of(released)
    assert config_from_hf(saved) == config_from_hf(released)
    assert config_from_hf(config_to_hf(config_from_hf(saved))) == config_from_hf(saved)


def test_oracle_ple_in_full() -> None:
    config = config_from_hf(json.loads((ORACLE / "ple" / "config_release.json").read_text()))
    assert config == ModelConfig(
        vocab_size=256,
        d_model=40,
        num_heads=4,
        num_kv_heads=1,
        head_dim=16,
        d_ff=56,
        layer_types=(SLIDING, SLIDING, FULL) * 3,
        window=8,
        num_global_kv_heads=1,
        global_head_dim=32,
        rope_sliding=RopeConfig(theta=500.0),
        rope_full=RopeConfig(theta=20_000.0, proportion=0.5),
        num_kv_shared_layers=5,
        double_wide_mlp=True,
        per_layer_input_width=12,
        per_layer_vocab_size=256,
        norm_eps=1e-3,
        logit_softcap=12.0,
        max_position=512,
        token_ids=TokenIds(
            image=250, video=251, audio=252, begin_image=247, end_image=248, begin_audio=245,
            end_audio=246,
        ),
        hf_type="gemma4",
    )  # fmt: skip


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any configuration that a config.json can say."""
    kinds = [*draw(st.lists(st.sampled_from([SLIDING, FULL]), min_size=1, max_size=12)), FULL]
    shared = draw(st.integers(0, len(kinds) - 1))
    if set(kinds[len(kinds) - shared :]) - set(kinds[: len(kinds) - shared]):
        shared = 0
    hf_type = draw(st.sampled_from(["gemma4_text", "gemma4", "gemma4_unified"]))
    rich = hf_type != "gemma4_unified"
    width = draw(st.sampled_from([0, 4])) if rich else 0
    ids = st.integers(0, 99)
    media = ("image", "video", "audio", "begin_image", "end_image", "begin_audio", "end_audio")
    return ModelConfig(
        vocab_size=draw(st.integers(1, 300_000)),
        d_model=draw(st.integers(1, 9999)),
        num_heads=8,
        num_kv_heads=draw(st.sampled_from([1, 2, 4])),
        head_dim=draw(st.sampled_from([16, 24, 256])),
        d_ff=draw(st.integers(1, 9999)),
        layer_types=tuple(kinds),
        window=draw(st.integers(1, 5000)),
        num_global_kv_heads=draw(st.sampled_from([1, 2, 4])),
        global_head_dim=draw(st.sampled_from([16, 32, 512])),
        rope_sliding=RopeConfig(
            theta=draw(st.floats(1, 1e7)),
            proportion=draw(st.sampled_from([0.25, 1.0])),
            factor=draw(st.sampled_from([1.0, 8.0])),
        ),
        rope_full=RopeConfig(
            theta=draw(st.floats(1, 1e7)),
            proportion=draw(st.floats(0.1, 1)),
            factor=draw(st.sampled_from([1.0, 2.5])),
        ),
        k_eq_v=draw(st.booleans()),
        num_kv_shared_layers=shared,
        double_wide_mlp=draw(st.booleans()),
        per_layer_input_width=width,
        per_layer_vocab_size=draw(st.integers(1, 999)) if width else 0,
        moe=MoEConfig(num_experts=8, num_experts_per_token=draw(st.integers(1, 8)), d_ff=24)
        if rich and draw(st.booleans())
        else None,
        norm_eps=draw(st.sampled_from([1e-6, 1e-3])),
        logit_softcap=draw(st.none() | st.floats(1, 100)),
        bidirectional=draw(st.sampled_from([None, "vision", "all"])),
        max_position=draw(st.integers(1, 10**6)),
        token_ids=TokenIds(
            pad=draw(st.integers(0, 99)),
            bos=draw(st.integers(0, 99)),
            eos=tuple(draw(st.lists(st.integers(0, 99), min_size=1, max_size=3))),
            suppress=tuple(draw(st.lists(st.integers(0, 99), max_size=2))),
            **({name: draw(ids) for name in media} if hf_type != "gemma4_text" else {}),
        ),
        hf_type=hf_type,
    )


@settings(max_examples=100, deadline=None)
@given(configs())
def test_any_config_survives(config: ModelConfig) -> None:
    through_json = json.loads(json.dumps([config_to_hf(config), generation_to_hf(config)]))
    assert replace(config_from_hf(*through_json), name=config.name) == config
    again = config_from_hf(respelt(config), generation_to_hf(config))
    assert replace(again, name=config.name) == config


@settings(max_examples=25, deadline=None)
@given(configs())
def test_transformers_reads_what_we_write(transformers: Any, config: ModelConfig) -> None:
    written = json.loads(json.dumps(config_to_hf(config)))
    theirs = transformers.AutoConfig.for_model(**written).get_text_config()
    for i, layer in enumerate(config.layers):
        per_layer = theirs.per_layer_config[i]
        assert (per_layer.head_dim, per_layer.num_key_value_heads) == (
            layer.head_dim,
            layer.num_kv_heads,
        )
        assert theirs.layer_types[i] == f"{layer.kind}_attention"
        rope = theirs.rope_parameters[f"{layer.kind}_attention"]
        assert rope["rope_theta"] == layer.rope.theta
        assert rope.get("partial_rotary_factor", 1.0) == layer.rope.proportion
        assert rope.get("factor", 1.0) == layer.rope.factor
    assert theirs.hidden_size == config.d_model
    assert theirs.final_logit_softcapping == config.logit_softcap
    assert theirs.use_bidirectional_attention == config.bidirectional
    assert theirs.attention_k_eq_v == config.k_eq_v
    assert getattr(theirs, "hidden_size_per_layer_input", 0) == config.per_layer_input_width
    # And what transformers then saves, in its own dialect, is the same model to us.
    saved = json.loads(json.dumps(transformers.AutoConfig.for_model(**written).to_dict()))
    if config.bidirectional == "all":  # it keeps half the window and doubles it again
        text_of(saved)["sliding_window"] = config.window
    again = config_from_hf(saved, generation_to_hf(config))
    assert replace(again, name=config.name) == config


@pytest.mark.parametrize("model_type", ["gemma4_text", "gemma4_unified_text"])
@pytest.mark.parametrize(
    "given_keys", [{}, {"num_hidden_layers": 12}, {"attention_k_eq_v": True}, {"head_dim": 64}]
)
def test_missing_keys_mean_the_class_defaults(
    transformers: Any, model_type: str, given_keys: dict[str, Any]
) -> None:
    config = config_from_hf({"model_type": model_type, **given_keys})
    spelt_out = transformers.AutoConfig.for_model(model_type, **given_keys).to_dict()
    assert config == config_from_hf(json.loads(json.dumps(spelt_out)))
    assert config.per_layer_input_width == (256 if model_type == "gemma4_text" else 0)
    assert [i for i, kind in enumerate(config.layer_types) if kind == FULL] == list(
        range(5, config.num_layers, 6)
    )


def test_unknown_placeholders_are_written_as_the_released_ones() -> None:
    written = config_to_hf(replace(preset("tiny-dense"), hf_type="gemma4"))
    assert (written["image_token_id"], written["eoa_token_index"]) == (258_880, 258_883)


def test_nested_defaults_name_the_placeholders() -> None:
    ids = config_from_hf({"model_type": "gemma4", "text_config": {}}).token_ids
    assert (ids.image, ids.audio, ids.video) == (258_880, 258_881, 258_884)
    assert config_from_hf({"model_type": "gemma4_text"}).token_ids.placeholders == ()


def test_last_layer_is_full_whatever_the_file_says() -> None:
    listed = {"layer_types": ["full_attention"] + ["sliding_attention"] * 2, "num_hidden_layers": 3}
    config = config_from_hf({"model_type": "gemma4_text", **listed})
    assert config.layer_types == (FULL, SLIDING, FULL)


def test_own_kv_heads_of_full_layers_need_k_eq_v() -> None:
    keys = {"model_type": "gemma4_text", "num_key_value_heads": 4, "num_global_key_value_heads": 2}
    assert config_from_hf(keys).num_global_kv_heads == 4
    assert config_from_hf(keys | {"attention_k_eq_v": True}).num_global_kv_heads == 2


def test_generation_config_says_what_ends_a_text() -> None:
    config = {"model_type": "gemma4_text", "eos_token_id": 1}
    generation = {"eos_token_id": [1, 106, 50], "suppress_tokens": [258_882]}
    ids = config_from_hf(config, generation).token_ids
    assert ids.eos == (1, 106, 50) and ids.suppress == (258_882,)
    assert config_from_hf(config).token_ids.eos == (1,)
    assert config_from_hf(config | {"eos_token_id": [1, 106]}).token_ids.eos == (1, 106)
    nested = {"model_type": "gemma4", "eos_token_id": [1, 106], "text_config": {"eos_token_id": 1}}
    assert config_from_hf(nested).token_ids.eos == (1, 106)


BASE = {"model_type": "gemma4_text"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "model_type is missing (supported: gemma4, gemma4_text"),
        ({"model_type": "llama"}, "'llama' is not supported (supported: gemma4, gemma4_text"),
        ({"model_type": "gemma3_text"}, "'gemma3_text' is not supported"),
        ({"model_type": "gemma4_assistant"}, "a drafter, which cannot run alone"),
        ({"model_type": "gemma4"}, "text_config is missing"),
        ({"model_type": "gemma4", "text_config": 3}, "text_config must be an object, got 3"),
        (
            {"model_type": "gemma4", "text_config": {"model_type": "gemma3_text"}},
            "text_config.model_type is 'gemma3_text'; only 'gemma4_text' is supported",
        ),
        (BASE | {"hidden_size": "big"}, "hidden_size must be a whole number, got 'big'"),
        (BASE | {"hidden_size": None}, "hidden_size must be a whole number, got None"),
        (BASE | {"hidden_size": True}, "hidden_size must be a whole number, got True"),
        (BASE | {"hidden_size": -4}, "d_model must be a positive whole number, got -4"),
        (BASE | {"rms_norm_eps": "x"}, "rms_norm_eps must be a number"),
        (BASE | {"attention_k_eq_v": 1}, "attention_k_eq_v must be true or false, got 1"),
        (BASE | {"eos_token_id": ["a"]}, "eos_token_id must be a token id or a list of them"),
        (BASE | {"layer_types": ["global"], "num_hidden_layers": 1}, "holds ['global']"),
        (BASE | {"layer_types": ["full_attention"]}, "has 1 entries, num_hidden_layers is 30"),
        (BASE | {"layer_types": "full"}, "layer_types must be a list"),
        (BASE | {"use_bidirectional_attention": "both"}, "must be null, 'vision' or 'all'"),
        (BASE | {"hidden_activation": "silu"}, "only 'gelu_pytorch_tanh' is supported"),
        (BASE | {"attention_bias": True}, "attention_bias is True; only False"),
        (BASE | {"tie_word_embeddings": False}, "tie_word_embeddings is False; only True"),
        (BASE | {"quantization_config": {"bits": 4}}, "quantised checkpoints are not supported"),
        (BASE | {"enable_moe_block": True}, "num_experts is missing; enable_moe_block needs it"),
        (BASE | {"rope_parameters": {}}, "rope_parameters.sliding_attention is missing"),
        (
            BASE | {"rope_parameters": {"sliding_attention": {"rope_type": "default"}}},
            "rope_parameters.sliding_attention.rope_theta is missing",
        ),
        (
            BASE
            | {"rope_parameters": {"sliding_attention": {"rope_type": "yarn", "rope_theta": 1e4}}},
            "rope_type 'yarn' is not supported (supported: default, proportional)",
        ),
        (
            BASE | {"per_layer_config": {"5": {"sliding_window": 4}}},
            "per_layer_config.5.sliding_window is not supported",
        ),
        (
            BASE | {"per_layer_config": {"30": {}}},
            "must have layer numbers below 30 as keys, got 30",
        ),
        (BASE | {"per_layer_config": {"last": {}}}, "as keys, got last"),
        (BASE | {"per_layer_config": {"0": {"head_dim": 8}}}, "changes a sliding layer's heads"),
        (
            BASE | {"per_layer_config": {"5": {"head_dim": 512}, "11": {"head_dim": 128}}},
            "gives full layers unlike heads",
        ),
        (BASE | {"num_attention_heads": 6}, "6 query heads cannot share 4 key/value heads"),
    ],
)
def test_errors_name_the_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        config_from_hf(config)
    assert "\n" not in str(caught.value)


def test_unified_has_no_experts() -> None:
    config = replace(preset("tiny-moe"), hf_type="gemma4_unified")
    with pytest.raises(UserError, match="neither experts nor per-layer inputs"):
        config_to_hf(config)
