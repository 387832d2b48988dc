"""Rounds: sample, verify, choose pairs, DPO, measure; each stage once, whatever happens in between.

    RUN/rlaif.json                      the settings, and what they were applied to
    RUN/round_0/evaluation.json         of the model that the run starts from
    RUN/round_1/samples.jsonl           answers of the policy before the round, added one by one
               /verdicts.jsonl          what the verifiers said of them, added one by one
               /pairs.jsonl  pairs.json the preference file; counts and reasons
               /dpo/                    a run of train.dpo, its result in dpo/huggingface
               /evaluation.json         of that result, with its answers and verdicts
    RUN/report.md  report.html  report.svg

Not here: the stages up to pairs (gather.py), measuring (measure.py), what is reported (report.py).
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.schema import DPOConfig, flatten
from configs.verifiable import RLAIFConfig
from gemma4_jax.distributed import say
from gemma4_jax.errors import UserError
from gemma4_jax.verify.intervals import Interval
from train import dpo
from train.verifiable.files import read_json, write_json
from train.verifiable.gather import gather
from train.verifiable.measure import Measuring, measure
from train.verifiable.models import Models
from train.verifiable.prompts import Prompt, PromptFile, read_prompts
from train.verifiable.report import write_report
from train.workdir import FREE

# May differ when a run goes on: as in train.workdir, and what changes neither an answer nor a pair. The model,
# data.path and data.validation are compared by their contents.
_FREE = FREE | {"rounds.count", "sampling.max_slots", "sampling.max_tokens", "model.path"}
_FREE |= {"verify.workers", "verify.isolation"}

_FINISHED = "finished.json"


def run(config: RLAIFConfig) -> int:
    """All rounds; returns the exit code: 0, or that of a DPO run which a signal ended. Raises UserError."""
    if not config.model.path:
        raise UserError(
            "rounds start from a model that is right sometimes; give --model.path FOLDER (train one with "
            "train.sft), not model.architecture"
        )
    folder, start = Path(config.run.workdir).absolute(), Path(config.model.path).absolute()
    prompts = read_prompts(config.data.path, config.verify)
    held_out = [read_prompts(path, config.verify) for path in config.data.validation]
    _check_names(held_out)
    models = Models(config.model.compute_dtype)
    _open(folder, config, prompts, held_out, models.fingerprint(start))
    say(
        f"{len(prompts.prompts)} prompts, held out: "
        + (", ".join(f"{len(f.prompts)} {f.name}" for f in held_out) or "none")
    )

    def measured(policy: Path, number: int) -> None:
        what = f"round {number}: held out"
        task = Measuring(config=config, models=models, policy=policy, start=start, what=what)
        found = measure(folder / f"round_{number}", held_out, task)
        for name, each in found["sets"].items():
            interval = Interval(each["accuracy"], each["low"], each["high"])
            say(f"round {number}: {name} {each['right']} of {each['answers']} right, {interval}")

    policy = start
    if held_out:
        measured(start, 0)
    for number in range(1, config.rounds.count + 1):
        here = folder / f"round_{number}"
        share = _of_round(prompts.prompts, number, config)
        chosen = gather(here, number, policy, share, config, models)
        if not chosen:
            say(f"round {number}: no pairs, so there is nothing to learn from; the rounds end here")
            break
        models.forget()  # DPO needs the memory
        if code := _learn(here, number, len(chosen), policy, start, config):
            return code
        policy = here / "dpo" / "huggingface"
        if held_out:
            measured(policy, number)
        write_report(folder, config, held_out)
    say(f"finished: the policy is {policy}; report {write_report(folder, config, held_out)}")
    return 0


def _check_names(held_out: Sequence[PromptFile]) -> None:
    names = [file.name for file in held_out]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"two files of data.validation are called {twice[0]!r}; results are told apart by the file's name: "
            "rename one"
        )


def _open(
    folder: Path,
    config: RLAIFConfig,
    prompts: PromptFile,
    held_out: Sequence[PromptFile],
    model: str,
) -> None:
    """Note what the run is; UserError if the folder holds another one."""
    settings = {name: value for name, value in flatten(config) if name not in _FREE}
    settings |= {
        "the model": model,
        "the prompts": prompts.digest,
        **{f"held out: {file.name}": file.digest for file in held_out},
    }
    now = json.loads(json.dumps(settings))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = read_json(folder / "rlaif.json")
        if before is None and any(folder.iterdir()):
            raise UserError(
                f"{folder} is not empty and no such run made it; give another run.workdir"
            )
        changed = [
            f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
            for name in dict.fromkeys([*(before or {}), *now])
            if before is not None and before.get(name) != now.get(name)
        ]
        if changed:
            raise UserError(
                f"the run in {folder} was started otherwise: {'; '.join(changed)}; use another run.workdir, or "
                "the old values"
            )
        write_json(folder / "rlaif.json", now)
    except OSError as error:
        raise UserError(f"cannot use {folder} as run.workdir: {error.strerror}") from None


def _of_round(prompts: Sequence[Prompt], number: int, config: RLAIFConfig) -> list[Prompt]:
    """The round's share of the prompts: the next ones in the file, from its beginning again after its end."""
    count = min(config.rounds.prompts or len(prompts), len(prompts))
    first = (number - 1) * count
    return [prompts[(first + i) % len(prompts)] for i in range(count)]


def _learn(
    here: Path, number: int, count: int, policy: Path, start: Path, config: RLAIFConfig
) -> int:
    """The round's DPO, which goes on from its newest checkpoint and is never run again once it has finished."""
    mark = here / "dpo" / _FINISHED
    # The export is what goes on; optimiser states are three times as large, and there is one a round.
    states = here / "dpo" / "checkpoints"
    if mark.exists():
        shutil.rmtree(states, ignore_errors=True)
        return 0
    say(f"round {number}: DPO on {count} pairs")
    far = start if config.rounds.reference == "start" and number > 1 else None
    code = dpo.run(_of_dpo(config, here, number, policy, far))
    if code == 0:
        write_json(mark, {"pairs": count})
        shutil.rmtree(states, ignore_errors=True)
    return code


def _of_dpo(
    config: RLAIFConfig, here: Path, number: int, policy: Path, reference: Path | None
) -> DPOConfig:
    """Settings of a round's DPO."""
    plain = config.dpo()
    return replace(
        plain,
        seed=(plain.seed + number) % 2**31,
        model=replace(plain.model, path=str(policy), architecture=""),
        # The tokens of a text can be more than those it was written with: never the end of a run.
        data=replace(plain.data, path=str(here / "pairs.jsonl"), validation=(), overlong="drop"),
        loss=replace(plain.loss, reference_path=str(reference or "")),
        run=replace(plain.run, workdir=str(here / "dpo"), export_huggingface=True, keep_best=0),
    )
