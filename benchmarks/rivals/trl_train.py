"""TRL's SFTTrainer and DPOTrainer on the work of benchmarks/train_step.py: one JSON line.

    python -m benchmarks.rivals.trl_train --config CONFIG_JSON --task sft|dpo --batch 8 --seq 128

Needs torch, transformers and trl. float32 on the CPU, AdamW, clipping at 1, no weight decay, no checkpointing
of activations, tokens made beforehand: what is timed is from the start of one step to the start of the next.
"""

import argparse
import copy
import tempfile
import time
from typing import Any

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from benchmarks.measure import Timing, emit, peak_rss_mib


class _Clock(TrainerCallback):
    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))


class _TokenisedDPO(DPOTrainer):
    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--task", choices=("sft", "dpo"), default="sft")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=128)
    parser.add_argument("--reference", choices=("live", "precomputed"), default="live")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(args.config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    vocab = config.get_text_config().vocab_size
    backend = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocab)}, unk_token="t3"))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="t0", eos_token="t1", bos_token="t2"
    )
    rng, steps = np.random.default_rng(0), args.repeat + 3
    rows = rng.integers(3, vocab, (args.batch * steps, args.seq)).tolist()
    clock = _Clock()
    common: dict[str, Any] = dict(
        max_steps=steps, learning_rate=1e-4, lr_scheduler_type="constant", max_grad_norm=1.0,
        weight_decay=0.0, gradient_checkpointing=False, bf16=False, use_cpu=True, report_to=[],
        logging_steps=1, save_strategy="no", disable_tqdm=True, max_length=args.seq,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trainer: Any
        if args.task == "sft":
            trainer = SFTTrainer(
                model,
                SFTConfig(folder, per_device_train_batch_size=args.batch, **common),
                train_dataset=Dataset.from_dict({"input_ids": rows}),
                processing_class=tokenizer,
                callbacks=[clock],
            )
        else:
            half = args.seq // 2
            pairs = {
                "prompt_ids": [row[:half] for row in rows[::2]],
                "chosen_ids": [row[half:] for row in rows[::2]],
                "rejected_ids": [row[half:] for row in rows[1::2]],
            }
            settings = DPOConfig(
                folder,
                per_device_train_batch_size=args.batch // 2,
                precompute_ref_log_probs=args.reference == "precomputed",
                **common,
            )
            trainer = _TokenisedDPO(
                model,
                ref_model=copy.deepcopy(model),
                args=settings,
                train_dataset=Dataset.from_dict(pairs),
                processing_class=tokenizer,
                callbacks=[clock],
            )
        trainer.train()
    marks = np.array(clock.marks[2:])  # the first steps warm up
    spans = np.diff(marks, axis=0)
    timing = Timing(wall=tuple(spans[:, 0]), cpu=tuple(spans[:, 1]))
    rates = timing.rates(args.batch * args.seq)
    emit(
        {
            "benchmark": "train_step",
            "stack": f"trl {trl.__version__}",
            "task": args.task,
            "reference": args.reference if args.task == "dpo" else None,
            "batch": args.batch,
            "seq": args.seq,
            "params": sum(p.numel() for p in model.parameters()),
            "dtype": "float32",
            "tokens_per_second": rates["per_second"],
            "tokens_per_cpu_second": rates["per_cpu_second"],
            "peak_rss_mib": peak_rss_mib(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
    )


if __name__ == "__main__":
    main()
