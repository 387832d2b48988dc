"""Test-data generator: the float32 outputs of the tiny models of `text_models.py`.

Needs `transformers` (5.23 was used), `torch` (CPU is enough), `numpy`.

    python -m tests.oracle.make_text_oracle --out tests/fixtures/oracle [--case dense ...]

Each case directory holds

    config.json, generation_config.json, model.safetensors   (save_pretrained)
    config_release.json      the same settings with the key names of the released checkpoints
    vectors.npz                                              (inputs and expected outputs)
    meta.json                                                (seed, versions, margins, sizes)

Arrays of vectors.npz (B = 2 sequences of T tokens; layer index i from 0)
    input_ids            [B,T]     int64, positions 0..T-1, no padding
    embeds               [B,T,D]   scaled embeddings entering layer 0
    layer_out.{i}        [B,T,D]   residual stream after layer i (after its scalar)
    final_norm           [B,T,D]   after the final norm
    logits               [B,T,V]   after the final soft cap
    key.{i}, value.{i}   [B,K,T,H] as attended to (keys rotated); non-shared layers only
    ple                  [B,T,L,P] combined per-layer inputs (ple case)
    router_probs.{i}     [B*T,E]   softmax over all experts (moe case)
    topk_index.{i}, topk_weight.{i}  [B*T,k]  weights after renormalising and the expert scale
    greedy_prompt        [1,T]     first row of input_ids
    greedy_tokens        [24]      greedy continuation, end-of-sequence ignored
    greedy_logits        [24,V]    logits that chose each of them
    padded_*                       row 0 cut short and left-padded next to row 1:
                                   padded_ids, padded_mask, padded_positions, padded_logits
    mm_*                           soft-token pass (ple, moe): mm_ids, mm_soft [n,D] in
                                   order of placeholders, mm_type_ids, mm_logits, mm_final_norm

Arrays of the draft case: one round of 6 drafts, after the `dense` model has read the prompt and chosen a token
    prompt               [1,T]     that of the dense case
    first_token, first_hidden, position   the token; the target's final-norm state before it; its index
    shared_key.*, shared_value.*   [1,K,T,H] of the target's last sliding and last full layer
    step_inputs_embeds   [6,2D]    the token's scaled embedding, and the hidden state
    step_logits, step_projected_hidden, step_token   [6,V], [6,D], [6]
"""

import argparse
import json
import os

import numpy as np
import torch
import transformers

from tests.oracle.text_models import (
    AUDIO,
    IMAGE,
    PAD,
    SEEDS,
    VIDEO,
    F,
    S,
    build,
    build_drafter,
    enable_drafting,
    text_stack,
)

SEQ, BATCH, NEW = 40, 2, 24


class Recorder:
    """Forward hooks that keep what the layers saw and produced."""

    def __init__(self, model):
        self.stack, self.data, self.handles = text_stack(model), {}, []
        for i, layer in enumerate(self.stack.layers):
            self.handles.append(layer.register_forward_hook(self._keep(f"layer_out.{i}")))
            if hasattr(layer, "router"):
                self.handles.append(layer.router.register_forward_hook(self._keep_router(i)))
        first = self.stack.layers[0]
        self.handles.append(first.register_forward_pre_hook(self._keep_input, with_kwargs=True))
        self.handles.append(self.stack.norm.register_forward_hook(self._keep("final_norm")))

    def _keep(self, key):
        def hook(module, args, out):
            self.data[key] = (out[0] if isinstance(out, tuple) else out).detach().clone().numpy()

        return hook

    def _keep_router(self, i):
        names = ("router_probs", "topk_weight", "topk_index")

        def hook(module, args, out):
            for key, value in zip(names, out, strict=True):
                self.data[f"{key}.{i}"] = value.detach().clone().numpy()

        return hook

    def _keep_input(self, module, args, kwargs):
        self.data["embeds"] = (
            (args[0] if args else kwargs["hidden_states"]).detach().clone().numpy()
        )

    def close(self):
        for h in self.handles:
            h.remove()
        return self.data


@torch.no_grad()
def run(model, **inputs):
    rec = Recorder(model)
    out = model(**inputs)
    data = rec.close()
    data["logits"] = out.logits.numpy()
    return data, out


@torch.no_grad()
def greedy(model, prompt):
    """Greedy continuation, once with the cache and once without; they must agree."""
    ids, past, step_in, tokens, logits = prompt.clone(), None, prompt, [], []
    for _ in range(NEW):
        out = model(input_ids=step_in, past_key_values=past, use_cache=True)
        past = out.past_key_values
        row = out.logits[0, -1]
        full = model(input_ids=ids, use_cache=False).logits[0, -1]
        if row.argmax() != full.argmax() or (row - full).abs().max() > 1e-3:
            raise RuntimeError("cached and uncached decoding disagree")
        step_in = row.argmax().view(1, 1)
        ids = torch.cat([ids, step_in], dim=1)
        tokens.append(int(step_in))
        logits.append(full.numpy())
    if {IMAGE, VIDEO, AUDIO} & set(tokens):
        raise RuntimeError("the continuation contains a placeholder id; pick another seed")
    logits = np.stack(logits)
    top2 = np.sort(logits, axis=-1)[:, -2:]
    return np.array(tokens), logits, float((top2[:, 1] - top2[:, 0]).min())


def plain_ids(gen, shape):
    return torch.randint(3, 240, shape, generator=gen)


@torch.no_grad()
def soft_token_pass(model, gen, vectors):
    """Placeholders filled with given vectors, two image blocks and one audio block."""
    stack = text_stack(model)
    ids = plain_ids(gen, (1, SEQ))
    kinds = torch.zeros_like(ids)
    for start, stop, token, kind in ((5, 11, IMAGE, 1), (14, 19, IMAGE, 1), (24, 28, AUDIO, 3)):
        ids[:, start:stop], kinds[:, start:stop] = token, kind
    hole = kinds > 0
    soft = torch.randn((int(hole.sum()), stack.config.hidden_size), generator=gen) * 1.5
    filled = torch.where(hole, torch.full_like(ids, PAD), ids)
    embeds = stack.embed_tokens(filled)
    embeds[hole] = soft
    inputs = {"inputs_embeds": embeds, "mm_token_type_ids": kinds, "use_cache": False}
    if stack.config.hidden_size_per_layer_input:
        inputs["per_layer_inputs"] = stack.get_per_layer_inputs(filled)
    data, _ = run(model, **inputs)
    vectors.update(
        mm_ids=ids.numpy(),
        mm_soft=soft.numpy(),
        mm_type_ids=kinds.numpy(),
        mm_logits=data["logits"],
        mm_final_norm=data["final_norm"],
    )


@torch.no_grad()
def text_case(case, out_dir):
    model = build(case)
    stack = text_stack(model)
    gen = torch.Generator().manual_seed(SEEDS[case] + 7)
    ids = plain_ids(gen, (BATCH, SEQ))

    vectors, _ = run(model, input_ids=ids, use_cache=True)
    vectors["input_ids"] = ids.numpy()
    # the cache of a sliding layer forgets; recompute the untrimmed keys and values layer by layer
    for i, (k, v) in enumerate(attended_states(model, ids)):
        if k is not None:
            vectors[f"key.{i}"], vectors[f"value.{i}"] = k, v
    if stack.config.hidden_size_per_layer_input:
        identity = stack.get_per_layer_inputs(ids)
        vectors["ple"] = stack.project_per_layer_inputs(stack.embed_tokens(ids), identity).numpy()

    vectors["greedy_prompt"] = ids[:1].numpy()
    vectors["greedy_tokens"], vectors["greedy_logits"], margin = greedy(model, ids[:1])

    cut = 13
    padded = ids.clone()
    padded[0, :cut] = PAD
    mask = torch.ones_like(ids)
    mask[0, :cut] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    data, _ = run(
        model, input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False
    )
    vectors.update(
        padded_ids=padded.numpy(),
        padded_mask=mask.numpy(),
        padded_positions=positions.numpy(),
        padded_logits=data["logits"],
    )
    if case != "dense":
        soft_token_pass(model, gen, vectors)

    extra = {
        "greedy_margin": margin,
        "greedy_distinct": len(set(vectors["greedy_tokens"].tolist())),
    }
    extra["max_abs_logit"] = float(np.abs(vectors["logits"]).max())
    gaps = []
    for i in range(len(stack.layers)):
        if f"router_probs.{i}" in vectors:
            p = np.sort(vectors[f"router_probs.{i}"], axis=-1)[:, ::-1]
            k = stack.config.top_k_experts
            gaps.append(float((p[:, k - 1] - p[:, k]).min()))
    if gaps:
        extra["router_topk_gap"] = min(gaps)
    finish(case, model, vectors, extra, out_dir)
    return model, vectors


@torch.no_grad()
def draft_case(out_dir):
    enable_drafting()
    target = build("dense")
    drafter = build_drafter(target)
    gen = torch.Generator().manual_seed(SEEDS["dense"] + 7)
    prompt = plain_ids(gen, (BATCH, SEQ))[:1]
    out = target(
        input_ids=prompt, use_cache=True, output_hidden_states=True, return_shared_kv_states=True
    )
    shared = dict(out.shared_kv_states.items())
    token = out.logits[:, -1:].argmax(-1)
    hidden = out.hidden_states[-1][:, -1:]
    position = torch.tensor([[prompt.shape[1]]])
    vectors = {
        "prompt": prompt.numpy(),
        "first_token": token.numpy(),
        "first_hidden": hidden.numpy(),
        "position": position.numpy(),
    }
    for name, kind in (("sliding", S), ("full", F)):
        vectors[f"shared_key.{name}"] = shared[kind][0].numpy()
        vectors[f"shared_value.{name}"] = shared[kind][1].numpy()
    steps = {"inputs_embeds": [], "logits": [], "projected_hidden": [], "token": []}
    table = target.get_input_embeddings()
    for _ in range(6):
        both = torch.cat([table(token), hidden], dim=-1)
        res = drafter(inputs_embeds=both, position_ids=position, shared_kv_states=shared)
        token, hidden = res.logits.argmax(-1), res.last_hidden_state
        steps["inputs_embeds"].append(both.numpy())
        steps["logits"].append(res.logits.numpy())
        steps["projected_hidden"].append(hidden.numpy())
        steps["token"].append(token.numpy())
    for key, value in steps.items():
        vectors[f"step_{key}"] = np.concatenate(value, axis=1)[0]
    top2 = np.sort(vectors["step_logits"], axis=-1)[:, -2:]
    margin = {"draft_margin": float((top2[:, 1] - top2[:, 0]).min())}
    finish("draft", drafter, vectors, margin, out_dir)


@torch.no_grad()
def attended_states(model, ids):
    """Keys and values per layer for the whole sequence, through the public shared-state hook."""
    stack, kept = text_stack(model), {}
    handles = []

    def make(i, attn):
        def hook(module, args, kwargs, out):
            sink = kwargs["shared_kv_states"]
            if not attn.is_kv_shared_layer:
                k, v = sink[attn.layer_type]
                kept[i] = (k.clone().numpy(), v.clone().numpy())

        return hook

    originals = []
    for i, layer in enumerate(stack.layers):
        attn = layer.self_attn
        originals.append(attn.store_full_length_kv)
        if not attn.is_kv_shared_layer:
            attn.store_full_length_kv = True  # every layer leaves its states under its own type
        handles.append(attn.register_forward_hook(make(i, attn), with_kwargs=True))
    model(input_ids=ids, use_cache=False)
    for h in handles:
        h.remove()
    for layer, flag in zip(stack.layers, originals, strict=True):
        layer.self_attn.store_full_length_kv = flag
    return [kept.get(i, (None, None)) for i in range(len(stack.layers))]


def write_release_config(out_dir):
    """Spell the full-attention overrides as the released files do, not as `per_layer_config`."""
    with open(os.path.join(out_dir, "config.json")) as f:
        config = json.load(f)
    text = config.get("text_config", config)
    overrides = next(iter(text.pop("per_layer_config").values()))
    text["global_head_dim"] = overrides["head_dim"]
    text["num_global_key_value_heads"] = overrides.get("num_key_value_heads")
    with open(os.path.join(out_dir, "config_release.json"), "w") as f:
        json.dump(config, f, indent=1)


def finish(case, model, vectors, extra, out_dir):
    os.makedirs(out_dir, exist_ok=True)
    model.save_pretrained(out_dir)
    write_release_config(out_dir)
    packed = {}
    for key, value in vectors.items():
        value = np.asarray(value)
        packed[key] = value.astype(np.float32) if value.dtype.kind == "f" else value
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise RuntimeError(f"{key} is not finite")
    np.savez_compressed(os.path.join(out_dir, "vectors.npz"), **packed)
    sizes = {f: os.path.getsize(os.path.join(out_dir, f)) for f in sorted(os.listdir(out_dir))}
    meta = {
        "case": case,
        "seed": SEEDS[case],
        "class": type(model).__name__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "dtype": "float32",
        "attention": "eager",
        **extra,
        "sizes": sizes,
    }
    with open(os.path.join(out_dir, "meta.json"), "w") as f:
        json.dump(meta, f, indent=1)
    total = sum(sizes.values())
    if total > 3_000_000:
        raise RuntimeError(f"{case}: {total} bytes is over the 3 MB limit")
    print(f"{case}: {total / 1e6:.2f} MB", json.dumps(extra))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True)
    parser.add_argument("--case", action="append", choices=sorted(SEEDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for case in args.case or SEEDS:
        out_dir = os.path.join(args.out, case)
        if case == "draft":
            draft_case(out_dir)
        else:
            text_case(case, out_dir)


if __name__ == "__main__":
    main()
