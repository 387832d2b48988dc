"""Training steps of a model with random weights on one accelerator: speed, memory, and the CPU's own numbers.

    python -m benchmarks.gpu_train [--model e2b] [--seq 2048] [--batch 4] [--only WORD]

SFT and DPO, adapters and all parameters (bfloat16 with Adafactor), with XLA's products and with our Triton
kernels: one JSON line each, from a process of its own. Then `parity` lines: loss and gradient norm of two small
steps in float32, here and on the CPU of this machine. The steps are those of `train.sft` and `train.dpo`. Not
here: data, checkpoints, several devices.
"""

import argparse
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.measure import emit, timed
from configs import hardware
from configs.adapters import LoRAConfig
from configs.losses import PreferenceConfig
from configs.mesh import MeshConfig
from configs.schema import (
    AnyConfig,
    BatchConfig,
    DataConfig,
    DPOConfig,
    ModelSource,
    OptimConfig,
    SFTConfig,
)
from gemma4_jax.errors import UserError, report_user_errors

CASES = [
    "-".join(words)
    for words in itertools.product(("sft", "dpo"), ("lora", "full"), ("xla", "triton"))
]
_RANK = 16
# Of a step that a CPU also takes.
_PARITY_SEQ = 64
_STEPS = 1000


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="e2b", help="a preset or a config.json (e2b)")
    parser.add_argument("--seq", type=int, default=2048, help="tokens of a row (2048)")
    parser.add_argument(
        "--batch", type=int, default=4, help="rows of a step, even (4); dpo: two to a pair"
    )
    parser.add_argument(
        "--repeat", type=int, default=5, help="timed steps, of which the best counts"
    )
    parser.add_argument("--only", default="", help="cases whose name has this word")
    parser.add_argument("--case", help="one case, here (what this program starts itself with)")
    parser.add_argument(
        "--parity", action="store_true", help="of that case two small steps in float32"
    )
    args = parser.parse_args(argv)
    with report_user_errors():
        if args.batch < 2 or args.batch % 2 or args.seq < 2 or args.repeat < 1:
            raise UserError(
                "--batch must be even and positive, --seq at least 2, --repeat positive"
            )
        if args.case:
            emit(numbers(args) if args.parity else speed(args))
            return
        cases = [case for case in CASES if args.only in case]
        if not cases:
            raise UserError(f"--only {args.only!r} names none of {', '.join(CASES)}")
        for case in cases:
            emit(_child(args, case, parity=False))
        for case in cases:
            emit(
                compared(_child(args, case, parity=True), _child(args, case, parity=True, on="cpu"))
            )


def _child(args: argparse.Namespace, case: str, parity: bool, on: str = "") -> dict[str, Any]:
    """One case in a process of its own, whose memory is its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_train", "--case", case, "--model", args.model]
    for name in ("seq", "batch", "repeat"):
        command += [f"--{name}", str(getattr(args, name))]
    if parity:
        command.append("--parity")
    environment = {**os.environ, **({"JAX_PLATFORMS": on} if on else {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"benchmark": "gpu_train", "case": case, "error": done.stderr.strip()[-2000:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """Parity lines of two devices as one."""
    failed = next((one for one in (here, there) if "error" in one), None)
    if failed:
        return failed
    far = {
        name: max(abs(a - b) / abs(b) for a, b in zip(here[name], there[name], strict=True))
        for name in ("losses", "gradient_norms")
    }
    return {**here, "cpu": {name: there[name] for name in far}, "differences": far}


def configured(args: argparse.Namespace) -> AnyConfig:
    """The run that a case is a step of."""
    task, method, products = args.case.split("-")
    adapters = LoRAConfig()
    if method == "lora":
        size = hardware.SIZES.get(args.model)
        adapters = dataclasses.replace(size.adapters if size else adapters, rank=_RANK)
    rows = args.batch if task == "sft" else args.batch // 2
    common: dict[str, Any] = {
        "model": ModelSource(
            architecture=args.model,
            param_dtype="bfloat16",
            compute_dtype="float32" if args.parity else "bfloat16",
            remat="full",
            gpu_kernels=products == "triton",
        ),
        "data": DataConfig(max_length=_PARITY_SEQ if args.parity else args.seq),
        "batch": BatchConfig(rows=1 if args.parity else rows),
        "optim": OptimConfig(
            name="adamw" if method == "lora" else "adafactor",
            stochastic_rounding=method == "full",
        ),
        "lora": adapters,
        "mesh": MeshConfig(data=1, fsdp=1),
    }
    if task == "sft":
        return SFTConfig(**common)
    # With adapters the base is the reference; else a second copy of the model would be.
    reference: Any = "live" if method == "lora" else "precomputed"
    return DPOConfig(**common, loss=PreferenceConfig(reference=reference))


class Steps:
    """Steps of a run from random weights over one random batch."""

    def __init__(self, config: AnyConfig):
        import jax
        import numpy as np

        from benchmarks.train_step import make_batch
        from gemma4_jax.model.adapters import init_adapters
        from train import dpo, lora, program, sft
        from train.losses import reference_pass
        from train.placement import batch_shardings, open_mesh
        from train.start import open_start

        length, rows = config.data.max_length, config.batch.rows
        self.mesh = open_mesh(config.mesh)
        with jax.set_mesh(self.mesh):
            start = open_start(config.model, config.seed, length, self.mesh)
            params: Any = start.load()
            self.model, vocab = start.config, start.config.vocab_size
            if isinstance(config, SFTConfig):
                objective = sft.objective(config, start)
                batch: Any = make_batch(vocab, "sft", rows, length)
            else:
                live = config.loss.reference == "live"
                objective = dpo.objective(config, start, live)
                batch = make_batch(vocab, "dpo", 2 * rows, length)
                if not live:
                    said = reference_pass(start.module, start.config)(params, batch)
                    batch["reference_logprobs"] = np.asarray(said)
            if config.lora.rank:
                objective = lora.over_base(objective, params)
                adapters = lora.hyperparameters(config.lora)
                params = init_adapters(start.config, adapters, config.seed, params)
            run = program.make_program(objective, _STEPS)
            self._batch = jax.device_put(batch, batch_shardings(batch, self.mesh))
            self._state, self._step, self._frozen = run.begin(params), run.step, objective.frozen

    def take(self) -> dict[str, float]:
        """One step; its metrics."""
        import jax

        with jax.set_mesh(self.mesh):
            self._state, metrics = self._step(self._state, self._batch, self._frozen)
        return {name: float(metrics[name]) for name in ("loss", "grad_norm")}


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds, MFU and memory of a step."""
    import jax

    from gemma4_jax.parallel.kernels import describe
    from train.throughput import peak_flops, peak_memory, training_flops

    config = configured(args)
    steps = Steps(config)
    first = steps.take()
    seconds = min(timed(steps.take, args.repeat).wall)
    tokens, device = args.batch * args.seq, jax.devices()[0]
    # Adapters: no gradient of the base. A live reference: a pass of its own.
    live = not isinstance(config, SFTConfig) and config.loss.reference == "live"
    forwards = float(live) - float(config.lora.rank > 0)
    flops = training_flops(steps.model, args.seq, forwards=forwards) * tokens / seconds
    peak = peak_flops(device.device_kind)
    return {
        "benchmark": "gpu_train",
        "case": args.case,
        "model": args.model,
        "batch": args.batch,
        "seq": args.seq,
        "runs": describe(jax.default_backend(), config.model.gpu_kernels),
        "first_loss": round(first["loss"], 4),
        "ms_a_step": round(1e3 * seconds, 2),
        "tokens_per_second": round(tokens / seconds, 1),
        "tflops": round(flops / 1e12, 3),
        "mfu": peak and round(flops / peak, 4),
        "peak_gib": round(peak_memory(), 2),
        "device": device.device_kind,
        "jax": jax.__version__,
    }


def numbers(args: argparse.Namespace) -> dict[str, Any]:
    """Losses and gradient norms of two small steps in float32: the second says that the update is right."""
    import jax

    jax.config.update("jax_default_matmul_precision", "highest")
    steps = Steps(configured(args))
    found = [steps.take() for _ in range(2)]
    return {
        "benchmark": "gpu_train_parity",
        "case": args.case,
        "model": args.model,
        "losses": [one["loss"] for one in found],
        "gradient_norms": [one["grad_norm"] for one in found],
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
