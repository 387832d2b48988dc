"""What the model answers to some prompts of its data, before training and after.

Kept in samples.jsonl, one line a time of asking. Not here: how it is shown (report.py).
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gemma4_jax.build import Model
from gemma4_jax.sample.sampler import Sampler
from gemma4_jax.text.tokenizer import Tokenizer
from train.data.sequences import Sequence

# Long enough to see what changed, short enough to cost nothing beside a run.
_NEW_TOKENS = 96
_PROMPT_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """tokens: all before the first target of an example; text: the same; wanted: what stands there."""

    tokens: list[int]
    text: str
    wanted: str


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Greedy answers after `step` steps, in the order of the prompts."""

    step: int
    texts: list[str]


def first_prompts(examples: Iterable[Sequence], tokenizer: Tokenizer, count: int) -> list[Prompt]:
    """Prompts of the first `count` examples that have one, and one that is short enough to show."""
    found: list[Prompt] = []
    for example in examples:
        if len(found) == count:
            break
        start = int(np.argmax(example.loss_mask))
        if 1 < start <= _PROMPT_TOKENS:
            tokens, wanted = example.tokens[:start].tolist(), example.tokens[start:].tolist()
            found.append(
                Prompt(
                    tokens=tokens,
                    text=tokenizer.decode(tokens),
                    wanted=tokenizer.decode(wanted[:_NEW_TOKENS]),
                )
            )
    return found


def ask(model: Model, prompts: list[Prompt], step: int) -> Answers:
    """Greedy answers to all prompts at once."""
    room = model.config.max_position - max(len(prompt.tokens) for prompt in prompts)
    done = Sampler(model).generate(
        [prompt.tokens for prompt in prompts], max_new_tokens=max(1, min(_NEW_TOKENS, room))
    )
    return Answers(step=step, texts=[completion.text for completion in done])


def note(file: Path, answers: Answers) -> None:
    """Add answers to the file, in the place of those after the same step."""
    kept = [old for old in read(file) if old.step != answers.step]
    lines = [json.dumps(asdict(each)) + "\n" for each in [*kept, answers]]
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(lines))
    temporary.replace(file)


def read(file: Path) -> list[Answers]:
    """Answers that were noted, in order; [] if there is no file."""
    if not file.exists():
        return []
    return [Answers(**json.loads(line)) for line in file.read_text().splitlines()]
