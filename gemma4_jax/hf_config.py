"""Hugging Face's `config.json` to `ModelConfig` and back.

Two dialects are read (spec 2.2): released files spell the full layers' head size and count as
`global_head_dim` and `num_global_key_value_heads`; files saved by transformers 5.23 list them layer
by layer in `per_layer_config`. Both nestings: a flat text config, or a `text_config` inside a
multimodal one. Written is the released dialect, which every transformers since Gemma 4 reads, and
other engines with it.

Missing keys mean what transformers' config classes say. Not here: the towers' own settings.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from gemma4_jax.config import (
    FULL,
    SLIDING,
    LayerKind,
    ModelConfig,
    MoEConfig,
    RopeConfig,
    TokenIds,
)
from gemma4_jax.errors import UserError
from gemma4_jax.hf_fields import Fields
from gemma4_jax.presets import PRESETS

Json = dict[str, Any]

HfType = Literal["gemma4_text", "gemma4", "gemma4_unified"]
# model_type -> what it is kept and written back as. A flat `gemma4_unified_text` differs from
# `gemma4_text` in its defaults alone, and we spell out every key.
SUPPORTED: dict[str, HfType] = {
    "gemma4": "gemma4",
    "gemma4_text": "gemma4_text",
    "gemma4_unified": "gemma4_unified",
    "gemma4_unified_text": "gemma4_text",
}
ARCHITECTURES = {
    "gemma4_text": "Gemma4ForCausalLM",
    "gemma4": "Gemma4ForConditionalGeneration",
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
}
_KINDS: dict[str, LayerKind] = {"sliding_attention": SLIDING, "full_attention": FULL}
_KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
_DEFAULT_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    "full_attention": {
        "rope_type": "proportional",
        "rope_theta": 1_000_000.0,
        "partial_rotary_factor": 0.25,
    },
}
# Top-level keys of a multimodal config and their class defaults; `_index` is upstream's spelling.
_MEDIA_IDS = {
    "image": ("image_token_id", 258_880),
    "video": ("video_token_id", 258_884),
    "audio": ("audio_token_id", 258_881),
    "begin_image": ("boi_token_id", 255_999),
    "end_image": ("eoi_token_id", 258_882),
    "begin_audio": ("boa_token_id", 256_000),
    "end_audio": ("eoa_token_index", 258_883),
}


def config_from_hf(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The text model that a parsed `config.json` describes.

    generation: the parsed `generation_config.json`, if there is one; its `eos_token_id` is the list
    that ends a text (config.json often names one of several) and its `suppress_tokens` are kept.
    Raises UserError for another architecture, an ill-typed key, or a feature no Gemma 4 has.
    """
    top = Fields(config)
    model_type = config.get("model_type")
    if model_type is None:
        raise UserError(
            "config.json: model_type is missing (supported: " + ", ".join(SUPPORTED) + ")"
        )
    if model_type not in SUPPORTED:
        drafter = " (a drafter, which cannot run alone)" if "assistant" in str(model_type) else ""
        raise UserError(
            f"config.json: model_type {model_type!r}{drafter} is not supported "
            f"(supported: {', '.join(SUPPORTED)})"
        )
    if config.get("quantization_config") is not None:
        raise UserError(
            "config.json: quantization_config is set; quantised checkpoints are not supported, "
            "load the bfloat16 release of the model"
        )
    nested = not model_type.endswith("_text")
    text = top.object("text_config") if nested else top
    if nested:
        text.must_be("model_type", f"{model_type}_text", f"inside {model_type}")
    top.must_be("tie_word_embeddings", True, "Gemma 4 ties input and output embeddings")
    return _named(text_model(text, top, model_type, nested, Fields(generation or {})))


def text_model(
    text: Fields, top: Fields, model_type: str, nested: bool, generation: Fields
) -> ModelConfig:
    """The model of a text config; `top` is what it is nested in, or itself."""
    unified = model_type.startswith("gemma4_unified")
    text.must_be("hidden_activation", "gelu_pytorch_tanh", "the only activation of Gemma 4")
    text.must_be("attention_bias", False, "no Gemma 4 has biases")
    text.must_be("tie_word_embeddings", True, "Gemma 4 ties input and output embeddings")
    layer_types = _layer_types(text)
    # 256 is the class default: files of models without per-layer inputs say 0.
    per_layer_width = text.integer("hidden_size_per_layer_input", 0 if unified else 256)
    per_layer_vocab = text.integer("vocab_size_per_layer_input", 262_144)
    k_eq_v = text.boolean("attention_k_eq_v", False)
    global_head_dim, num_global_kv_heads = _full_layer_heads(text, layer_types, k_eq_v)
    rope = text.object("rope_parameters", _DEFAULT_ROPE)
    softcap = text.data.get("final_logit_softcapping")
    bidirectional = text.data.get("use_bidirectional_attention", "vision" if unified else None)
    if bidirectional not in (None, "vision", "all"):
        raise UserError(
            f"config.json: {text.where}use_bidirectional_attention must be null, 'vision' or "
            f"'all', got {bidirectional!r}"
        )
    return ModelConfig(
        vocab_size=text.integer("vocab_size", 262_144),
        d_model=text.integer("hidden_size", 2304),
        num_heads=text.integer("num_attention_heads", 8),
        num_kv_heads=text.integer("num_key_value_heads", 4),
        head_dim=text.integer("head_dim", 256),
        d_ff=text.integer("intermediate_size", 9216),
        layer_types=layer_types,
        window=text.integer("sliding_window", 1024 if unified else 512),
        num_global_kv_heads=num_global_kv_heads,
        global_head_dim=global_head_dim,
        rope_sliding=_rope(rope, SLIDING),
        rope_full=_rope(rope, FULL),
        k_eq_v=k_eq_v,
        num_kv_shared_layers=text.integer("num_kv_shared_layers", 0),
        double_wide_mlp=text.boolean("use_double_wide_mlp", False),
        per_layer_input_width=per_layer_width,
        per_layer_vocab_size=per_layer_vocab if per_layer_width else 0,
        moe=_moe(text),
        norm_eps=text.number("rms_norm_eps", 1e-6),
        logit_softcap=None if softcap is None else text.number("final_logit_softcapping", 0.0),
        bidirectional=bidirectional,
        max_position=text.integer("max_position_embeddings", 262_144 if unified else 131_072),
        token_ids=_token_ids(text, top, nested, generation),
        hf_type=SUPPORTED[model_type],
    )


def _layer_types(text: Fields) -> tuple[LayerKind, ...]:
    count = text.integer("num_hidden_layers", 30)
    names = text.data.get("layer_types")
    if names is None:
        names = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count)]
    if not isinstance(names, list) or not names:
        raise UserError(f"config.json: {text.where}layer_types must be a list, got {names!r}")
    if unknown := sorted({str(name) for name in names} - set(_KINDS)):
        raise UserError(
            f"config.json: {text.where}layer_types holds {unknown} (known: {', '.join(_KINDS)})"
        )
    if len(names) != count:
        raise UserError(
            f"config.json: {text.where}layer_types has {len(names)} entries, "
            f"num_hidden_layers is {count}"
        )
    return (*(_KINDS[name] for name in names[:-1]), FULL)  # the last is full whatever the file says


def _full_layer_heads(
    text: Fields, layer_types: tuple[LayerKind, ...], k_eq_v: bool
) -> tuple[int, int]:
    """Head size and K/V heads of full layers, from whichever dialect the file speaks."""
    head_dim, kv_heads = text.integer("head_dim", 256), text.integer("num_key_value_heads", 4)
    if "per_layer_config" not in text.data:
        own_kv_heads = text.optional_integer("num_global_key_value_heads") if k_eq_v else None
        size = text.optional_integer("global_head_dim", 512)
        return size or 512, own_kv_heads or kv_heads
    overrides = text.object("per_layer_config", {})
    keys = _layer_keys(overrides, len(layer_types))
    seen: dict[LayerKind, set[tuple[int, int]]] = {SLIDING: set(), FULL: set()}
    for i, kind in enumerate(layer_types):
        layer = overrides.object(keys.get(i, str(i)), {})
        if extra := sorted(set(layer.data) - {"head_dim", "num_key_value_heads"}):
            raise UserError(
                f"config.json: {layer.where}{extra[0]} is not supported; layers may differ in "
                "head_dim and num_key_value_heads only"
            )
        heads = layer.integer("head_dim", head_dim), layer.integer("num_key_value_heads", kv_heads)
        seen[kind].add(heads)
    if seen[SLIDING] - {(head_dim, kv_heads)}:
        raise UserError(f"config.json: {overrides.where[:-1]} changes a sliding layer's heads")
    if len(seen[FULL]) > 1:
        raise UserError(
            f"config.json: {overrides.where[:-1]} gives full layers unlike heads "
            f"{sorted(seen[FULL])}; they must be the same on all of them"
        )
    return seen[FULL].pop()


def _layer_keys(overrides: Fields, num_layers: int) -> dict[int, str]:
    """Key of each layer that has overrides. transformers pads them with zeros: "05", "11"."""
    keys = {int(key): key for key in overrides.data if str(key).isdecimal()}
    if len(keys) < len(overrides.data) or max(keys, default=0) >= num_layers:
        raise UserError(
            f"config.json: {overrides.where[:-1]} must have layer numbers below {num_layers} as "
            f"keys, got {', '.join(map(str, overrides.data))}"
        )
    return keys


def _rope(parameters: Fields, kind: LayerKind) -> RopeConfig:
    rope = parameters.object(_KIND_NAMES[kind])
    rope_type = rope.data.get("rope_type", "default")
    if rope.data.get("rope_theta") is None:
        raise UserError(f"config.json: {rope.where}rope_theta is missing")
    theta = rope.number("rope_theta", 0.0)
    if rope_type == "default":  # rotates whole heads, whatever else the object says
        return RopeConfig(theta=theta)
    if rope_type != "proportional":
        raise UserError(
            f"config.json: {rope.where}rope_type {rope_type!r} is not supported "
            "(supported: default, proportional)"
        )
    return RopeConfig(
        theta=theta,
        proportion=rope.number("partial_rotary_factor", 1.0),
        factor=rope.number("factor", 1.0),
    )


def _moe(text: Fields) -> MoEConfig | None:
    if not text.boolean("enable_moe_block", False):
        return None
    reason = "enable_moe_block"
    return MoEConfig(
        num_experts=text.required_integer("num_experts", reason),
        num_experts_per_token=text.required_integer("top_k_experts", reason),
        d_ff=text.required_integer("moe_intermediate_size", reason),
    )


def _token_ids(text: Fields, top: Fields, nested: bool, generation: Fields) -> TokenIds:
    eos = generation.integers("eos_token_id") or top.integers("eos_token_id")
    media = {
        field: top.optional_integer(key, default) for field, (key, default) in _MEDIA_IDS.items()
    }
    return TokenIds(
        pad=text.optional_integer("pad_token_id", 0) or 0,
        bos=text.integer("bos_token_id", 2) if text.data.get("bos_token_id", 2) is not None else 2,
        eos=eos or text.integers("eos_token_id") or (1,),
        suppress=generation.integers("suppress_tokens") or (),
        **(media if nested else {}),
    )


def _named(config: ModelConfig) -> ModelConfig:
    """Call a config that has the shape of a preset by the preset's name."""
    for name, make in PRESETS.items():
        known = make()
        if replace(known, token_ids=config.token_ids, hf_type=config.hf_type) == replace(
            config, name=name
        ):
            return replace(config, name=name)
    return config


def config_to_hf(config: ModelConfig, dtype: str = "float32") -> Json:
    """The `config.json` of `config`, in the released dialect.

    dtype: what the weights beside it are stored in. A multimodal type is written nested, its towers
    null: transformers loads that for `gemma4` and `gemma4_unified` alike, and the placeholder ids
    have nowhere to be in a flat text config.
    """
    nested = config.hf_type != "gemma4_text"
    head: Json = {"architectures": [ARCHITECTURES[config.hf_type]], "dtype": dtype}
    text = _text_to_hf(config)
    if not nested:
        return {**head, **text}
    # An id that is not known is written as the released one: transformers' forward fails on null.
    ids = {field: getattr(config.token_ids, field) for field in _MEDIA_IDS}
    return {
        **head,
        "model_type": config.hf_type,
        **{
            key: default if ids[field] is None else ids[field]
            for field, (key, default) in _MEDIA_IDS.items()
        },
        "tie_word_embeddings": True,
        "text_config": {**text, "dtype": dtype},
        "vision_config": None,
        "audio_config": None,
    }


def _text_to_hf(config: ModelConfig) -> Json:
    ids = config.token_ids
    text: Json = {
        "model_type": "gemma4_unified_text"
        if config.hf_type == "gemma4_unified"
        else "gemma4_text",
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "layer_types": [_KIND_NAMES[kind] for kind in config.layer_types],
        "sliding_window": config.window,
        "global_head_dim": config.global_head_dim,
        "num_global_key_value_heads": config.num_global_kv_heads if config.k_eq_v else None,
        "attention_k_eq_v": config.k_eq_v,
        "rope_parameters": {
            "sliding_attention": _rope_to_hf(config.rope_sliding, "default"),
            "full_attention": _rope_to_hf(config.rope_full, "proportional"),
        },
        "num_kv_shared_layers": config.num_kv_shared_layers,
        "use_double_wide_mlp": config.double_wide_mlp,
        "rms_norm_eps": config.norm_eps,
        "final_logit_softcapping": config.logit_softcap,
        "use_bidirectional_attention": config.bidirectional,
        "max_position_embeddings": config.max_position,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "pad_token_id": ids.pad,
        "bos_token_id": ids.bos,
        "eos_token_id": ids.eos[0] if len(ids.eos) == 1 else list(ids.eos),
    }
    if not config.k_eq_v and config.num_global_kv_heads != config.num_kv_heads:
        # The released dialect cannot say this: it honours the count only where keys are values.
        heads = {
            "head_dim": config.global_head_dim,
            "num_key_value_heads": config.num_global_kv_heads,
        }
        full = [i for i, kind in enumerate(config.layer_types) if kind == FULL]
        text["per_layer_config"] = {str(i): heads for i in full}
    if config.hf_type == "gemma4_unified":
        if config.moe or config.per_layer_input_width:
            raise UserError("a gemma4_unified model has neither experts nor per-layer inputs")
        return text
    moe = config.moe
    return text | {
        "hidden_size_per_layer_input": config.per_layer_input_width,
        "vocab_size_per_layer_input": config.per_layer_vocab_size or config.vocab_size,
        "enable_moe_block": moe is not None,
        "num_experts": moe.num_experts if moe else None,
        "top_k_experts": moe.num_experts_per_token if moe else None,
        "moe_intermediate_size": moe.d_ff if moe else None,
    }


def _rope_to_hf(rope: RopeConfig, plain: str) -> Json:
    """`plain`: the type to call it if nothing of it needs the proportional one."""
    if plain == "default" and rope.proportion == rope.factor == 1.0:
        return {"rope_type": "default", "rope_theta": rope.theta}
    scaled = {} if rope.factor == 1.0 else {"factor": rope.factor}
    return {
        "rope_type": "proportional",
        "rope_theta": rope.theta,
        "partial_rotary_factor": rope.proportion,
        **scaled,
    }


def generation_to_hf(config: ModelConfig) -> Json:
    """The `generation_config.json` of `config`: what ends a text and what is never sampled."""
    ids = config.token_ids
    suppress = {"suppress_tokens": list(ids.suppress)} if ids.suppress else {}
    return {
        "bos_token_id": ids.bos,
        "eos_token_id": list(ids.eos),
        "pad_token_id": ids.pad,
        **suppress,
    }
