"""Direct preference optimisation: `python -m train.dpo PRESET [--a.b value]`.

Presets are in configs/dpo.py. The same command continues a run that was stopped or killed.
"""

import sys
from collections.abc import Sequence

from configs import cli, dpo
from configs.schema import DPOConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    config = cli.parse("python -m train.dpo", dpo.PRESETS, sys.argv[1:] if argv is None else argv)
    # From here on jax is needed: seconds that --help and a mistyped flag must not cost.
    from gemma4_jax.errors import report_user_errors

    with report_user_errors():
        return run(config)


def run(config: DPOConfig) -> int:
    """Train as `config` says; returns the exit code. Raises UserError."""
    from train import lora
    from train.data.pipeline import PairRows
    from train.data.prepared import prepare
    from train.data.rows import dpo_encoder
    from train.loop import Task, fit
    from train.losses import make_dpo_loss
    from train.reference import check_live, precomputed
    from train.start import open_start, tokenizer_fingerprint
    from train.workdir import Workdir

    workdir = Workdir(config)
    data = config.data
    start = lora.prepared(open_start(config.model, config.seed, data.max_length), config.lora)
    family = start.config.family
    prepared = prepare(
        data.path,
        dpo_encoder(start.tokenizer, family),
        max_length=data.max_length,
        overlong=data.overlong,
        cache_dir=workdir.cache,
        settings={
            "task": "dpo",
            "tokenizer": tokenizer_fingerprint(start.tokenizer),
            "family": family,
        },
    )
    workdir.open_data(prepared.fingerprint, prepared.summary)
    print(prepared.summary)
    source = PairRows(prepared, data.max_length)
    live = config.loss.reference == "live"
    if live:
        initial, frozen = start.load, start.load()
        check_live(workdir.reference, frozen, workdir.has_checkpoint())
    else:
        logprobs, initial = precomputed(start, source, config, workdir, prepared.fingerprint)
        source, frozen = PairRows(prepared, data.max_length, logprobs), None
    task = Task(
        config=config,
        start=start,
        workdir=workdir,
        source=source,
        loss_fn=make_dpo_loss(start.module, start.config, beta=config.loss.beta, live=live),
        initial=initial,
        frozen=frozen,
        plots=("loss", "rewards/margins", "rewards/accuracies"),
        forwards=float(live),
    )
    return fit(lora.adapted(task))


if __name__ == "__main__":
    raise SystemExit(main())
