"""Supervised fine-tuning: `python -m train.sft PRESET [--a.b value]`.

Presets are in configs/sft.py. The same command continues a run that was stopped or killed.
"""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs import cli, sft
from configs.schema import SFTConfig

if TYPE_CHECKING:
    from train.program import Objective
    from train.start import Start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    config = cli.parse("python -m train.sft", sft.PRESETS, sys.argv[1:] if argv is None else argv)
    # From here on jax is needed: seconds that --help and a mistyped flag must not cost.
    from gemma4_jax.distributed import initialize
    from gemma4_jax.errors import report_user_errors

    with report_user_errors():
        initialize()
        return run(config)


def objective(config: SFTConfig, start: "Start") -> "Objective":
    """What SFT descends on."""
    from train.losses import make_sft_loss
    from train.program import Objective

    loss_fn = make_sft_loss(start.module, start.config, config.loss, config.router)
    return Objective(config=config, start=start, loss_fn=loss_fn)


def run(config: SFTConfig) -> int:
    """Train as `config` says; returns the exit code. Raises UserError."""
    from gemma4_jax.data.encode import sft_encoder
    from gemma4_jax.distributed import main_first, say
    from train import lora, noisy_gate
    from train.data.mixture import Sequences, prepare_data, prepare_validation
    from train.data.pipeline import PackedRows, SFTRows, Source
    from train.loop import Task, fit
    from train.losses import make_sft_loss
    from train.placement import check_batch, check_model, open_mesh
    from train.samples import first_prompts
    from train.start import open_start, tokenizer_fingerprint
    from train.workdir import Workdir

    mesh = open_mesh(config.mesh)
    check_batch(mesh, config.batch, config.data.max_length)
    workdir = Workdir(config)
    data = config.data
    start = lora.prepared(open_start(config.model, config.seed, data.max_length, mesh), config.lora)
    check_model(mesh, start.config, config.router)
    family = start.config.family
    encode = sft_encoder(start.tokenizer, family, data.thoughts)
    settings = {
        "task": "sft",
        "tokenizer": tokenizer_fingerprint(start.tokenizer),
        "family": family,
    }
    with main_first("data"):
        prepared = prepare_data(data, encode, workdir.cache, settings)
        held_out = prepare_validation(data, encode, workdir.cache, settings)
    workdir.open_data(prepared.fingerprint, prepared.summary)
    say(prepared.summary)

    def examples(sequences: Sequences) -> Source:
        if data.packing:
            return PackedRows(sequences, data.max_length, config.seed)
        return SFTRows(sequences, data.max_length)

    source = examples(prepared)
    if data.packing:
        say(f"packed into {len(source)} sequences of {source.length}")
    task = Task(
        **vars(objective(config, start)),
        workdir=workdir,
        source=source,
        initial=start.load,
        prompts=first_prompts(
            (prepared.sequence(i) for i in range(len(prepared.lengths))),
            start.tokenizer,
            config.run.samples,
        ),
        data=prepared.summary,
        validation={name: examples(found) for name, found in held_out.items()},
        validation_loss_fn=make_sft_loss(start.module, start.config),
        perplexity=True,
        plots=("loss", "grad_norm"),
    )
    return fit(noisy_gate.noisy(lora.adapted(task)))


if __name__ == "__main__":
    raise SystemExit(main())
