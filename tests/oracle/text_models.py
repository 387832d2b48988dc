"""Tiny random Gemma 4 text models of transformers: what the committed fixtures were made with.

    dense  Gemma4ForCausalLM. 7 layers, sliding and full mixed, k_eq_v, own head
           size and KV head count on full layers, partial rotary, window 8.
    ple    Gemma4ForConditionalGeneration without towers. Per-layer embeddings,
           5 KV-shared layers whose sources are not the last two layers before
           the cut, double-wide MLP on the shared layers, one KV head.
    moe    Gemma4ForConditionalGeneration without towers. Routed experts beside a
           dense MLP, k_eq_v, `use_bidirectional_attention="vision"`.
    draft  Gemma4AssistantForCausalLM. 4 layers that take K/V from the `dense`
           model, ordered output of 16 centroids.

Every parameter and persistent buffer is drawn at random, norm scales and layer scalars included, so
that leaving one out moves the logits. Needs torch and transformers. Running the models, and
recording what they do, is in `make_text_oracle.py`.
"""

import torch
from transformers import (
    Gemma4AssistantConfig,
    Gemma4AssistantForCausalLM,
    Gemma4Config,
    Gemma4ForCausalLM,
    Gemma4ForConditionalGeneration,
    Gemma4TextConfig,
)

S, F = "sliding_attention", "full_attention"
PAD, IMAGE, VIDEO, AUDIO = 0, 250, 251, 252
SEEDS = {"dense": 1101, "ple": 2205, "moe": 3351, "draft": 4403}


def rope(theta_sliding, theta_full, factor):
    return {
        S: {"rope_type": "default", "rope_theta": theta_sliding},
        F: {"rope_type": "proportional", "rope_theta": theta_full, "partial_rotary_factor": factor},
    }


def common(**kw):
    base = dict(
        vocab_size=256,
        vocab_size_per_layer_input=256,
        hidden_size_per_layer_input=0,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=2,
        eos_token_id=1,
        sliding_window=8,
    )
    base.update(kw)
    return base


def text_settings(case):
    if case == "dense":
        return common(
            hidden_size=48,
            intermediate_size=88,
            num_hidden_layers=7,
            layer_types=[S, S, F, S, S, S, F],
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            num_global_key_value_heads=1,
            global_head_dim=24,
            attention_k_eq_v=True,
            rope_parameters=rope(10_000.0, 1_000_000.0, 0.25),
            rms_norm_eps=1e-6,
            final_logit_softcapping=30.0,
        )
    if case == "ple":
        return common(
            hidden_size=40,
            intermediate_size=56,
            num_hidden_layers=9,
            layer_types=[S, S, F, S, S, F, S, S, F],
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=16,
            global_head_dim=32,
            num_kv_shared_layers=5,
            use_double_wide_mlp=True,
            hidden_size_per_layer_input=12,
            rope_parameters=rope(500.0, 20_000.0, 0.5),
            rms_norm_eps=1e-3,
            final_logit_softcapping=12.0,
        )
    if case == "moe":
        return common(
            hidden_size=40,
            intermediate_size=36,
            num_hidden_layers=6,
            layer_types=[S, S, F, S, S, F],
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            num_global_key_value_heads=1,
            global_head_dim=24,
            attention_k_eq_v=True,
            enable_moe_block=True,
            num_experts=8,
            top_k_experts=3,
            moe_intermediate_size=24,
            use_bidirectional_attention="vision",
            rope_parameters=rope(1_000.0, 50_000.0, 0.25),
            rms_norm_eps=1e-3,
            final_logit_softcapping=20.0,
        )
    raise ValueError(case)


@torch.no_grad()
def randomise(model, seed):
    """Fill every parameter and persistent buffer from one generator, in name order."""
    gen = torch.Generator().manual_seed(seed)

    def normal(shape, std):
        return torch.randn(shape, generator=gen) * std

    def uniform(shape, lo, hi):
        return torch.rand(shape, generator=gen) * (hi - lo) + lo

    state = model.state_dict()
    for name in sorted(state):
        t = state[name]
        if name.startswith("lm_head"):
            continue  # tied to the embedding table
        if name.endswith("token_ordering"):
            new = torch.randperm(t.numel(), generator=gen)
        elif name.endswith("layer_scalar"):
            new = uniform(t.shape, 0.55, 0.95)
        elif name.endswith("router.scale"):
            new = uniform(t.shape, 0.4, 1.8)
        elif name.endswith("per_expert_scale"):
            new = uniform(t.shape, 0.4, 1.9)
        elif "norm" in name:
            new = uniform(t.shape, 0.4, 1.7)
            if "q_norm" in name or "k_norm" in name:
                new = new * 0.7
        elif "embed_tokens_per_layer" in name:
            new = normal(t.shape, 0.4)
        elif "embed_tokens" in name:
            new = normal(t.shape, 0.35)
        elif name.endswith("router.proj.weight"):
            new = normal(t.shape, 1.5)
        elif t.dim() >= 2:  # linear maps and stacked experts: last axis is the input
            new = normal(t.shape, 1.3 * t.shape[-1] ** -0.5)
        else:
            raise ValueError(f"no rule for {name}")
        t.copy_(new.to(t.dtype))
    model.tie_weights()


def enable_drafting():
    """Work around transformers 5.23.0, where `kv_sharing_modes` blocks drafting twice.

    It refuses a config whose layers are all KV-shared (every drafter), and a target without
    KV-shared layers (12B, 26B-A4B, 31B, our `dense`) marks no layer as the one to lend its states.
    """
    original = Gemma4TextConfig.kv_sharing_modes.fget

    def modes(self):
        n, types = self.num_hidden_layers, self.layer_types
        if self.num_kv_shared_layers == n:
            return ["reuse"] * n
        if self.num_kv_shared_layers == 0:
            lenders = {max(i for i in range(n) if types[i] == t) for t in types}
            return ["store" if i in lenders else None for i in range(n)]
        return original(self)

    Gemma4TextConfig.kv_sharing_modes = property(modes)


def build_drafter(target):
    """For the `dense` model; needs `enable_drafting`."""
    own = ("num_key_value_heads", "head_dim", "num_global_key_value_heads", "global_head_dim")
    dense = text_settings("dense")
    settings = common(
        vocab_size_per_layer_input=0,
        hidden_size=36,
        intermediate_size=44,
        num_hidden_layers=4,
        layer_types=[S, S, S, F],
        num_attention_heads=2,
        **{name: dense[name] for name in own},
        attention_k_eq_v=True,
        num_kv_shared_layers=4,
        rope_parameters=dense["rope_parameters"],
        rms_norm_eps=1e-6,
    )
    config = Gemma4AssistantConfig(
        text_config=Gemma4TextConfig(**settings),
        backbone_hidden_size=target.config.hidden_size,
        use_ordered_embeddings=True,
        num_centroids=16,
        centroid_intermediate_top_k=4,
    )
    config._attn_implementation = "eager"
    config.text_config._attn_implementation = "eager"
    drafter = Gemma4AssistantForCausalLM(config).float().eval()
    randomise(drafter, SEEDS["draft"])
    return drafter


def build(case):
    text = Gemma4TextConfig(**text_settings(case))
    if case == "dense":
        config, cls = text, Gemma4ForCausalLM
    else:
        config = Gemma4Config(
            text_config=text,
            vision_config=None,
            audio_config=None,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            audio_token_id=AUDIO,
            boi_token_id=247,
            eoi_token_id=248,
            boa_token_id=245,
            eoa_token_index=246,
        )
        cls = Gemma4ForConditionalGeneration
    config._attn_implementation = "eager"
    text._attn_implementation = "eager"
    model = cls(config).float().eval()
    for module in model.modules():  # reference loop over experts, no grouped kernels
        if hasattr(module, "config") and hasattr(module.config, "_experts_implementation"):
            module.config._experts_implementation = "eager"
    randomise(model, SEEDS[case])
    return model


def text_stack(model):
    return model.model.language_model if hasattr(model.model, "language_model") else model.model
