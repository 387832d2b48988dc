"""DPO against TRL's numbers: log-probabilities, loss, metrics, every gradient, one AdamW step.

The fixtures were made with TRL 1.16 and transformers 5.23 in float32.
"""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.schema import OptimConfig
from gemma4_jax import checkpoint
from gemma4_jax.checkpoint.huggingface import prefix, text_tensors
from gemma4_jax.data.encode import Sequence
from train.data.sequences import fill
from train.losses import make_dpo_loss, sequence_logprobs
from train.optim import make_optimizer, make_schedule
from train.step import accumulate, init_state, make_train_step

from .helpers import stack

FIXTURES = Path(__file__).parent.parent / "fixtures" / "dpo"
RELATIVE = 1e-3
BETA = 0.1


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

    def logprobs(self, model):
        return sequence_logprobs(model.module, model.config, model.params, self.batch)

    def loss_and_gradient(self):
        batch = {**self.batch, "reference_logprobs": self.logprobs(self.reference)}
        loss_fn = make_dpo_loss(self.policy.module, self.policy.config, beta=BETA, live=False)
        run = jax.jit(lambda p, b: accumulate(loss_fn, 1, p, b, jax.random.key(0), None))
        loss, grads = run(self.policy.params, batch)
        return loss, jax.tree.map(lambda g: g / loss.weight, grads)


@pytest.fixture(scope="module", params=["dense", "moe"])
def case(request):
    return Case(FIXTURES / request.param)


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
    for model, name in ((case.policy, "policy"), (case.reference, "ref")):
        actual = case.logprobs(model)
        for side, column in (("chosen", 0), ("rejected", 1)):
            expected = case.expected[f"{name}_{side}"]
            np.testing.assert_allclose(actual[:, column], expected, rtol=RELATIVE)


def test_loss_metrics_and_gradients(case):
    loss, grads = case.loss_and_gradient()
    expected = case.expected["losses"]["sigmoid"]
    assert float(loss.sum / loss.weight) == pytest.approx(expected["loss"], rel=RELATIVE)
    assert float(optax.tree.norm(grads)) == pytest.approx(expected["grad_norm"], rel=RELATIVE)
    assert_norms(norms(case.policy.config, grads), case.expected["param_grad_norms"])
    for name, (total, weight) in loss.metrics.items():
        expected = case.expected["metrics"][name]
        assert float(total / weight) == pytest.approx(expected, rel=RELATIVE), name


def test_one_optimiser_step(case):
    config = OptimConfig(peak_lr=1e-3, schedule="constant", warmup_fraction=0, clip_norm=1.0)
    optimizer = make_optimizer(config, 10)
    loss_fn = make_dpo_loss(case.policy.module, case.policy.config, beta=BETA, live=True)
    step = make_train_step(loss_fn, optimizer, make_schedule(config, 10), accumulation=2)
    state = init_state(jax.tree.map(jnp.copy, case.policy.params), optimizer, seed=0)
    state, metrics = step(state, case.batch, case.reference.params)
    expected = case.expected["train_log_1step"][0]
    for name in ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins"):
        assert float(metrics[name]) == pytest.approx(expected[name], rel=RELATIVE), name
    assert_norms(norms(case.policy.config, state.params), case.expected["after_step_param_norms"])
