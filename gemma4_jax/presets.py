"""The five released Gemma 4 text models and tiny twins of each kind, by name.

Sizes: spec section 3 (google-deepmind/gemma, Hugging Face's conversion scripts; parameter totals match
the Hub's counts to the last digit). A twin has every feature of its model at a size a laptop trains.
"""

from collections.abc import Callable

from gemma4_jax.config import FULL, SLIDING, LayerKind, ModelConfig, MoEConfig, RopeConfig, TokenIds
from gemma4_jax.errors import unknown

VOCAB_SIZE = 262_144
# Pretrained and instruction-tuned files differ in what ends a text; generation_config.json decides on
# load. Here: <eos>, <turn|>, <|tool_response>, as the instruction-tuned files say.
_RELEASE_TOKENS = TokenIds(
    pad=0, bos=2, eos=(1, 106, 50), image=258_880, audio=258_881, video=258_884,
    begin_image=255_999, end_image=258_882, begin_audio=256_000, end_audio=258_883,
)  # fmt: skip


def _pattern(num_layers: int, sliding_per_full: int) -> tuple[LayerKind, ...]:
    block: tuple[LayerKind, ...] = (SLIDING,) * sliding_per_full + (FULL,)
    return block * (num_layers // len(block))


def e2b() -> ModelConfig:
    """Gemma 4 E2B: 4.63e9 text parameters, 2.35e9 of them outside the embedding tables."""
    return ModelConfig(
        name="e2b", vocab_size=VOCAB_SIZE, d_model=1536, num_heads=8, num_kv_heads=1, head_dim=256,
        d_ff=6144, layer_types=_pattern(35, 4), window=512, num_global_kv_heads=1, global_head_dim=512,
        num_kv_shared_layers=20, double_wide_mlp=True, per_layer_input_width=256,
        per_layer_vocab_size=VOCAB_SIZE, max_position=131_072, token_ids=_RELEASE_TOKENS, hf_type="gemma4",
    )  # fmt: skip


def e4b() -> ModelConfig:
    """Gemma 4 E4B: 7.46e9 text parameters."""
    return ModelConfig(
        name="e4b", vocab_size=VOCAB_SIZE, d_model=2560, num_heads=8, num_kv_heads=2, head_dim=256,
        d_ff=10_240, layer_types=_pattern(42, 5), window=512, num_global_kv_heads=2, global_head_dim=512,
        num_kv_shared_layers=18, per_layer_input_width=256, per_layer_vocab_size=VOCAB_SIZE,
        max_position=131_072, token_ids=_RELEASE_TOKENS, hf_type="gemma4",
    )  # fmt: skip


def gemma_12b() -> ModelConfig:
    """Gemma 4 12B (the unified model, without its media projections): 11.9e9 text parameters."""
    return ModelConfig(
        name="12b", vocab_size=VOCAB_SIZE, d_model=3840, num_heads=16, num_kv_heads=8, head_dim=256,
        d_ff=15_360, layer_types=_pattern(48, 5), window=1024, num_global_kv_heads=1, global_head_dim=512,
        k_eq_v=True, bidirectional="vision", max_position=262_144, token_ids=_RELEASE_TOKENS,
        hf_type="gemma4_unified",
    )  # fmt: skip


def gemma_26b_a4b() -> ModelConfig:
    """Gemma 4 26B-A4B: 128 experts, 8 active; 25.2e9 text parameters, 3.8e9 active."""
    return ModelConfig(
        name="26b-a4b", vocab_size=VOCAB_SIZE, d_model=2816, num_heads=16, num_kv_heads=8, head_dim=256,
        d_ff=2112, layer_types=_pattern(30, 5), window=1024, num_global_kv_heads=2, global_head_dim=512,
        k_eq_v=True, moe=MoEConfig(num_experts=128, num_experts_per_token=8, d_ff=704),
        bidirectional="vision", max_position=262_144, token_ids=_RELEASE_TOKENS, hf_type="gemma4",
    )  # fmt: skip


def gemma_31b() -> ModelConfig:
    """Gemma 4 31B: 30.7e9 text parameters."""
    return ModelConfig(
        name="31b", vocab_size=VOCAB_SIZE, d_model=5376, num_heads=32, num_kv_heads=16, head_dim=256,
        d_ff=21_504, layer_types=_pattern(60, 5), window=1024, num_global_kv_heads=4, global_head_dim=512,
        k_eq_v=True, bidirectional="vision", max_position=262_144, token_ids=_RELEASE_TOKENS, hf_type="gemma4",
    )  # fmt: skip


def tiny_ple() -> ModelConfig:
    """Twin of E2B and E4B: per-layer inputs, two stacks (owning, shared), double-wide MLPs."""
    return ModelConfig(
        name="tiny-ple", vocab_size=512, d_model=128, num_heads=4, num_kv_heads=1, head_dim=32, d_ff=256,
        layer_types=_pattern(10, 4), window=32, num_global_kv_heads=1, global_head_dim=64,
        num_kv_shared_layers=5, double_wide_mlp=True, per_layer_input_width=16, per_layer_vocab_size=512,
        rope_full=RopeConfig(theta=100_000.0, proportion=0.25), max_position=1024,
    )  # fmt: skip


def tiny_dense() -> ModelConfig:
    """Twin of 12B and 31B: k_eq_v full layers with their own head size and count."""
    return ModelConfig(
        name="tiny-dense", vocab_size=512, d_model=128, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=384,
        layer_types=_pattern(6, 5), window=32, num_global_kv_heads=1, global_head_dim=64, k_eq_v=True,
        rope_full=RopeConfig(theta=100_000.0, proportion=0.25), max_position=1024,
    )  # fmt: skip


def tiny_moe() -> ModelConfig:
    """Twin of 26B-A4B: eight experts, two active, beside a dense MLP."""
    return ModelConfig(
        name="tiny-moe", vocab_size=512, d_model=128, num_heads=4, num_kv_heads=2, head_dim=32, d_ff=128,
        layer_types=_pattern(6, 5), window=32, num_global_kv_heads=1, global_head_dim=64, k_eq_v=True,
        moe=MoEConfig(num_experts=8, num_experts_per_token=2, d_ff=64),
        rope_full=RopeConfig(theta=100_000.0, proportion=0.25), max_position=1024,
    )  # fmt: skip


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    "e2b": e2b, "e4b": e4b, "12b": gemma_12b, "26b-a4b": gemma_26b_a4b, "31b": gemma_31b,
    "tiny-ple": tiny_ple, "tiny-dense": tiny_dense, "tiny-moe": tiny_moe,
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """The model of that name; UserError naming the known ones if there is none."""
    if name not in PRESETS:
        raise unknown("model", name, PRESETS)
    return PRESETS[name]()
