"""transformers' prefill and decode on the work of benchmarks/decode.py: one JSON line.

    python -m benchmarks.rivals.transformers_decode --config CONFIG_JSON --batch 1 --prompt 512 --new 64

Needs torch and transformers. Random weights, greedy through `generate` with its default cache, end-of-text
ignored. Prefill is one pass that returns the last token's logits; decode is `generate` less that pass.
"""

import argparse

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.measure import Timing, emit, peak_rss_mib, timed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(args.config)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, args.dtype)).eval()
    model.generation_config.eos_token_id = None
    ids = torch.randint(3, config.get_text_config().vocab_size, (args.batch, args.prompt))
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def prefill() -> None:
        model(input_ids=ids, attention_mask=mask, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def generate() -> None:
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=args.new,
            do_sample=False,
            pad_token_id=0,
        )

    before, whole = timed(prefill, args.repeat), timed(generate, args.repeat)
    decode = Timing(
        wall=tuple(t - min(before.wall) for t in whole.wall),
        cpu=tuple(t - sorted(before.cpu)[len(before.cpu) // 2] for t in whole.cpu),
    )
    prefill_rates = before.rates(args.batch * args.prompt)
    decode_rates = decode.rates(args.batch * (args.new - 1))
    emit(
        {
            "benchmark": "decode",
            "stack": f"transformers {transformers.__version__}",
            "batch": args.batch,
            "prompt": args.prompt,
            "new": args.new,
            "params": sum(p.numel() for p in model.parameters()),
            "dtype": args.dtype,
            "prefill_tokens_per_second": prefill_rates["per_second"],
            "prefill_tokens_per_cpu_second": prefill_rates["per_cpu_second"],
            "decode_tokens_per_second": decode_rates["per_second"],
            "decode_tokens_per_cpu_second": decode_rates["per_cpu_second"],
            "peak_rss_mib": peak_rss_mib(),
            "torch": torch.__version__,
        }
    )


if __name__ == "__main__":
    main()
