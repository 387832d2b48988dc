"""Replies that no reader may stumble over: long, unclosed, nested. Readers would not fail but run for hours."""

import pytest

from eval.tasks import aime, bbh, gpqa_diamond, gsm8k, mmlu_pro, mmmlu

CHOICES = ["one", "two", "three", "four"]
READERS = {
    "mmlu_pro": lambda text: (mmlu_pro.extract(text, CHOICES), mmlu_pro.extract_reference(text)),
    "gpqa_diamond": lambda text: (
        gpqa_diamond.extract(text, CHOICES),
        gpqa_diamond.extract_reference(text),
    ),
    "mmmlu": lambda text: (mmmlu.extract(text, CHOICES), mmmlu.extract_reference(text)),
    "aime": lambda text: (aime.extract(text), aime.extract_reference(text)),
    "gsm8k": lambda text: (gsm8k.extract(text), *gsm8k.extract_reference(text)),
    "bbh": lambda text: (bbh.extract(text), bbh.extract_reference(text)),
}
HOSTILE = [
    "Answer:" + " " * 100_000,
    "Answer" + " " * 100_000 + ":",
    "answer " * 25_000,
    "Answer: " * 15_000,
    "the answer is " * 10_000,
    "\\boxed{" * 15_000,
    "\\boxed{" * 5_000 + "}" * 5_000,
    "Answer: " + "(" * 100_000,
    "Answer: " + "\\text{" * 10_000 + "A" + "}" * 10_000,
    "Answer: " + "**" * 50_000 + "A",
    "#### " + "1," * 50_000,
    "A " * 50_000,
    "9" * 5_000,
    "\\boxed{" + "9" * 5_000 + "}",
    "\\boxed{9^{9^{9^{9}}}}",
    "\x00\ud800",
]


@pytest.mark.parametrize("task", READERS)
@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_every_reader_gets_through(task, number):
    for found in READERS[task](HOSTILE[number]):
        assert found is None or isinstance(found, str)
