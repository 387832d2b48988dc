"""Direct preference optimisation: `python -m train.dpo PRESET [--a.b value]`.

Presets are in configs/dpo.py. The same command continues a run that was stopped or killed.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from configs import cli, dpo
from configs.schema import DPOConfig

if TYPE_CHECKING:
    from train.program import Objective
    from train.start import Start


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    config = cli.parse("python -m train.dpo", dpo.PRESETS, sys.argv[1:] if argv is None else argv)
    # From here on jax is needed: seconds that --help and a mistyped flag must not cost.
    from gemma4_jax.distributed import initialize
    from gemma4_jax.errors import report_user_errors

    with report_user_errors():
        initialize()
        return run(config)


def objective(config: DPOConfig, start: "Start", live: bool) -> "Objective":
    """What DPO descends on. live: the reference's parameters are there, else what it said of every pair."""
    from train.losses import make_dpo_loss
    from train.program import Objective

    loss, model = config.loss, start.config
    return Objective(
        config=config,
        start=start,
        loss_fn=make_dpo_loss(start.module, model, loss, live=live, router=config.router),
        sync_every=loss.sync_every,
        sync_alpha=loss.sync_alpha,
    )


def run(config: DPOConfig) -> int:
    """Train as `config` says; returns the exit code. Raises UserError."""
    import numpy as np

    from gemma4_jax.data.encode import dpo_encoder
    from gemma4_jax.distributed import main_first, say
    from train import lora, noisy_gate
    from train.data.mixture import Sequences, prepare_data, prepare_validation
    from train.data.pipeline import PairRows
    from train.data.shared_prefix import SharedPrefixRows
    from train.loop import Task, fit, total_steps
    from train.losses import make_dpo_loss
    from train.placement import check_batch, check_model, open_mesh
    from train.reference import check_live, choose_reference, precomputed
    from train.samples import first_prompts
    from train.start import check_same_tokens, open_start, tokenizer_fingerprint
    from train.workdir import Workdir

    mesh = open_mesh(config.mesh)
    check_batch(mesh, config.batch, config.data.max_length)
    workdir = Workdir(config)
    data = config.data
    start = lora.prepared(open_start(config.model, config.seed, data.max_length, mesh), config.lora)
    check_model(mesh, start.config, config.router)
    family = start.config.family
    encode = dpo_encoder(start.tokenizer, family, data.thoughts)
    settings = {
        "task": "dpo",
        "tokenizer": tokenizer_fingerprint(start.tokenizer),
        "family": family,
    }
    with main_first("data"):
        prepared = prepare_data(data, encode, workdir.cache, settings)
        held_out = prepare_validation(data, encode, workdir.cache, settings)
    workdir.open_data(prepared.fingerprint, prepared.summary)
    say(prepared.summary)

    def rows(sequences: Sequences, logprobs: np.ndarray | None = None) -> PairRows:
        return PairRows(sequences, data.max_length, logprobs)

    pairs = rows(prepared)
    validation = {name: rows(found) for name, found in held_out.items()}

    def examples(logprobs: np.ndarray | None = None) -> PairRows | SharedPrefixRows:
        if data.packing:
            return SharedPrefixRows(prepared, data.max_length, config.seed, logprobs)
        return rows(prepared, logprobs)

    source = examples()
    if isinstance(source, SharedPrefixRows):
        say(source.summary)
    epochs = total_steps(config, len(source)) * config.batch.rows / len(source)
    visits = round(epochs * len(pairs))
    live, reason = choose_reference(config, len(pairs), visits)
    say(f"reference: {reason}")
    if config.loss.sync_every:
        initial, frozen = start.load, None
    elif live:
        initial, frozen = start.load, start.load()
        check_live(workdir.reference, frozen, workdir.has_checkpoint())
    else:
        # Each pair in rows of its own: the numbers do not depend on how pairs are packed.
        everything = {prepared.fingerprint: pairs}
        everything |= {found.fingerprint: rows(found) for found in held_out.values()}
        if config.loss.reference_path:
            other = replace(config.model, path=config.loss.reference_path)
            anchor = lora.prepared(
                open_start(other, config.seed, data.max_length, mesh), config.lora
            )
            check_same_tokens(start, anchor, config.loss.reference_path)
            logprobs, initial = precomputed(anchor, everything, config, workdir)[0], start.load
        else:
            logprobs, initial = precomputed(start, everything, config, workdir)
        source, frozen = examples(logprobs[prepared.fingerprint]), None
        validation = {
            name: rows(found, logprobs[found.fingerprint]) for name, found in held_out.items()
        }
    task = Task(
        **vars(replace(objective(config, start, live), frozen=frozen)),
        workdir=workdir,
        source=source,
        initial=initial,
        prompts=first_prompts(
            (prepared.sequence(i) for i in range(0, len(prepared.lengths), 2)),
            start.tokenizer,
            config.run.samples,
        ),
        data=prepared.summary,
        validation=validation,
        validation_loss_fn=make_dpo_loss(start.module, start.config, config.loss, live=live),
        plots=("loss", "rewards/margins", "rewards/accuracies"),
        forwards=float(live),
    )
    return fit(noisy_gate.noisy(lora.adapted(task)))


if __name__ == "__main__":
    raise SystemExit(main())
