"""Log-probabilities of prompts equal those of whole logits, whatever is beside them."""

import jax
import numpy as np
import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.sample import Sampler
from gemma4_jax.sample.scoring import prompt_logprobs


def test_they_are_those_of_the_logits(model, monkeypatch):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 330, n).tolist() for n in (70, 1, 5, 33, 2, 100)]
    # Several calls: four rows of 32, one of 128.
    monkeypatch.setattr("gemma4_jax.sample.scoring._TOKENS", 128)
    found = prompt_logprobs(model, prompts)
    for prompt, got in zip(prompts, found, strict=True):
        logprobs = np.asarray(jax.nn.log_softmax(model.logits(np.array([prompt]))[0]))
        want = logprobs[np.arange(len(prompt) - 1), prompt[1:]]
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_they_are_what_sampling_says(model):
    done = Sampler(model).generate([[5, 6, 7]], max_new_tokens=12, ignore_eos=True)[0]
    (scored,) = prompt_logprobs(model, [5, 6, 7, *done.tokens])
    np.testing.assert_allclose(scored[2:], done.logprobs, atol=1e-4)


def test_bad_prompts(model):
    with pytest.raises(UserError, match="160"):
        prompt_logprobs(model, [[3] * 161])
    with pytest.raises(UserError, match="empty"):
        prompt_logprobs(model, [""])
