"""DPO against TRL's numbers: log-probabilities, every loss, metrics, gradients, one AdamW step.

The fixtures were made with TRL 1.16 and transformers 5.23 in float32.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.losses import PreferenceConfig, PreferenceLoss
from configs.schema import OptimConfig
from gemma4_jax import checkpoint
from gemma4_jax.checkpoint.huggingface import prefix, text_tensors
from gemma4_jax.data.encode import Sequence
from train.data.sequences import fill
from train.losses import (
    batch_scores,
    batch_totals,
    make_dpo_loss,
    pair_loss,
    reference_pass,
)
from train.optim import make_optimizer, make_schedule
from train.step import StepOptions, apply_updates, init_state, make_train_step

from .helpers import stack

FIXTURES = Path(__file__).parent.parent / "fixtures" / "dpo"
RELATIVE = 1e-3
LOSSES = sorted(get_args(PreferenceLoss))


class Case:
    """Models, batch and expected numbers of one architecture."""

    def __init__(self, folder: Path):
        self.policy = checkpoint.load(folder / "policy")
        self.reference = checkpoint.load(folder / "ref")
        self.expected = json.loads((folder / "oracle.json").read_text())
        raw = np.load(folder / "batch.npz")
        lengths = raw["attention_mask"].sum(1)
        rows = [
            Sequence(ids[:n].astype(np.int32), mask[:n].astype(bool))
            for ids, mask, n in zip(raw["input_ids"], raw["completion_mask"], lengths, strict=True)
        ]
        # TRL stacks all chosen rows above all rejected ones.
        half = len(rows) // 2
        flat = stack([fill([row], 65) for row in rows])
        self.batch = {name: jnp.stack([x[:half], x[half:]], axis=1) for name, x in flat.items()}

    @functools.cached_property
    def logprobs(self):
        """Of each completion, [B,2], under the policy and under the reference."""
        run = reference_pass(self.policy.module, self.policy.config)
        return run(self.policy.params, self.batch), run(self.reference.params, self.batch)

    @functools.cached_property
    def pass_and_back(self):
        """Cotangent -> what the policy says, [2B,T], and the gradient of the parameters, compiled."""
        module, config = self.policy.module, self.policy.config
        shape = self.batch["loss_mask"].shape
        rows = {name: x.reshape(-1, shape[-1]) for name, x in self.batch.items()}

        def logprobs(params):
            scores, _ = batch_scores(module, config, params, rows)
            return scores.logprobs, scores

        @jax.jit
        def run(params, cotangent):
            _, back, scores = jax.vjp(logprobs, params, has_aux=True)
            return scores, back(cotangent)[0]

        return functools.partial(run, self.policy.params)

    @functools.cached_property
    def scores(self):
        rows = math.prod(self.batch["loss_mask"].shape[:2])
        nothing = np.zeros((rows, self.batch["loss_mask"].shape[-1]), np.float32)
        return self.pass_and_back(nothing)[0]

    def loss_and_gradient(self, config):
        """Of any loss; the model is compiled once for all of them."""
        scores, reference = self.scores, self.logprobs[1]

        @functools.partial(jax.value_and_grad, has_aux=True)
        def value(logprobs):
            given = dataclasses.replace(scores, logprobs=logprobs)
            loss = pair_loss(given, reference, self.batch, batch_totals(self.batch), config)
            return loss.value, loss

        (_, loss), cotangent = value(scores.logprobs)
        return loss, self.pass_and_back(cotangent)[1]


@pytest.fixture(scope="module", params=["dense", "moe"])
def case(request):
    return Case(FIXTURES / request.param)


tree_norm = jax.jit(optax.tree.norm)


def norms(config, tree):
    """L2 norm of every Hugging Face tensor in a tree shaped like the parameters."""
    found = {}
    for tensor in text_tensors(config):
        total = 0.0
        for part in tensor.parts:
            leaf = tree
            for key in part.path:
                leaf = leaf[key]
            leaf = np.asarray(leaf if part.index is None else leaf[part.index], np.float64)
            total += float((leaf**2).sum())
        found[prefix(config) + tensor.name] = math.sqrt(total)
    return found


def assert_norms(actual, expected):
    missing = set(expected) - set(actual)
    assert not missing
    # A gradient that is 0 in exact arithmetic is rounding noise in both: relative to the largest then.
    floor = 1e-6 * max(expected.values())
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=RELATIVE, abs=floor), name


def test_log_probabilities(case):
    for actual, name in zip(case.logprobs, ("policy", "ref"), strict=True):
        for side, column in (("chosen", 0), ("rejected", 1)):
            expected = case.expected[f"{name}_{side}"]
            np.testing.assert_allclose(actual[:, column], expected, rtol=RELATIVE)


def test_loss_metrics_and_gradients(case):
    loss, grads = case.loss_and_gradient(PreferenceConfig())
    expected = case.expected["losses"]["sigmoid"]
    assert float(loss.value) == pytest.approx(expected["loss"], rel=RELATIVE)
    assert float(tree_norm(grads)) == pytest.approx(expected["grad_norm"], rel=RELATIVE)
    assert_norms(norms(case.policy.config, grads), case.expected["param_grad_norms"])
    for name, (total, weight) in loss.metrics.items():
        expected = case.expected["metrics"][name]
        assert float(total / weight) == pytest.approx(expected, rel=RELATIVE, abs=1e-5), name
    assert set(case.expected["metrics"]) - set(loss.metrics) == {"num_tokens"}


@pytest.mark.parametrize("name", [*LOSSES, "mpo"])
def test_every_loss(case, name):
    expected = case.expected["losses"][name]
    recorded = expected["kw"]
    loss = PreferenceConfig(
        types=tuple(recorded["loss_type"]),
        weights=tuple(recorded.get("loss_weights", ())),
        label_smoothing=recorded.get("label_smoothing", 0.0),
    )
    assert set(recorded) <= {"loss_type", "loss_weights", "label_smoothing"}
    found, grads = case.loss_and_gradient(loss)
    assert float(found.value) == pytest.approx(expected["loss"], rel=RELATIVE)
    assert float(tree_norm(grads)) == pytest.approx(expected["grad_norm"], rel=RELATIVE)


@pytest.mark.parametrize("kind", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_divergences(case, kind):
    found, _ = case.loss_and_gradient(PreferenceConfig(f_divergence=kind))
    assert float(found.value) == pytest.approx(case.expected["f_div"][kind], rel=RELATIVE)


STEP = OptimConfig(peak_lr=1e-3, schedule="constant", warmup_fraction=0, clip_norm=1.0)


@pytest.mark.parametrize("case", ["dense"], indirect=True)
def test_one_step_with_a_live_reference(case):
    optimizer = make_optimizer(STEP, 10)
    loss_fn = make_dpo_loss(case.policy.module, case.policy.config, PreferenceConfig(), live=True)
    step = make_train_step(loss_fn, optimizer, make_schedule(STEP, 10), StepOptions(accumulation=2))
    state = init_state(jax.tree.map(jnp.copy, case.policy.params), optimizer, seed=0)
    state, metrics = step(state, case.batch, case.reference.params)
    assert state.num_tokens() == case.expected["metrics"]["num_tokens"]
    expected = case.expected["train_log_1step"][0]
    for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert float(metrics[name]) == pytest.approx(expected[name], rel=RELATIVE), name
    assert_norms(norms(case.policy.config, state.params), case.expected["after_step_param_norms"])


@pytest.mark.parametrize("case", ["moe"], indirect=True)
def test_where_the_optimiser_takes_experts(case):
    """From the gradient that the tests above compare: a whole step of this model takes long to compile."""
    optimizer = make_optimizer(STEP, 10)

    @jax.jit
    def move(params, grads):
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return apply_updates(params, updates, None)

    moved = move(case.policy.params, case.loss_and_gradient(PreferenceConfig())[1])
    assert_norms(norms(case.policy.config, moved), case.expected["after_step_param_norms"])
