"""Pairs with one copy of their prompt: the layout, and that the model cannot tell it from separate rows."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_jax.data.encode import Sequence
from gemma4_jax.logprobs import token_logprobs
from train.branches import branch_sums
from train.data.mixture import Mixture
from train.data.pipeline import PairRows, iterate
from train.data.prepared import Prepared
from train.data.shared_prefix import SharedPrefixRows, fill_pairs
from train.losses import sequence_logprobs

from .helpers import TINY, assert_trees_close, tiny


def side(prompt, answer):
    tokens = np.asarray([*prompt, *answer], np.int32)
    return Sequence(tokens, np.arange(len(tokens)) >= len(prompt))


def dataset(sizes, vocab=512, seed=0):
    """Pairs of random tokens; sizes: (prompt, chosen, rejected) lengths."""
    rng = np.random.default_rng(seed)
    sides = []
    for prompt, *answers in sizes:
        start = rng.integers(3, vocab, prompt)
        sides += [side(start, rng.integers(3, vocab, n)) for n in answers]
    return Prepared(
        tokens=np.concatenate([s.tokens for s in sides]),
        loss_mask=np.concatenate([s.loss_mask for s in sides]),
        offsets=np.concatenate([[0], np.cumsum([len(s.tokens) for s in sides])]),
        fingerprint="f",
        summary="s",
    )


# Answers that begin alike, prompts of one token, and rows far longer than two windows of 32.
SIZES = [(70, 40, 25), (1, 5, 9), (20, 90, 3), (130, 4, 60), (2, 2, 2), (33, 64, 31)]


def test_layout():
    example = fill_pairs(
        [
            (side([10, 11, 12], [20, 21]), side([10, 11, 12], [30])),
            (side([5], [6]), side([5], [7])),
        ],
        14,
    )
    assert example["tokens"].tolist() == [10, 11, 12, 20, 21, 12, 30, 5, 6, 5, 7, 0, 0, 0]
    assert example["branches"].tolist() == [0, 0, 1, 1, 1, 2, 2, 1, 1, 2, 2, 0, 0, 0]
    assert example["positions"].tolist() == [0, 1, 2, 3, 4, 2, 3, 0, 1, 0, 1, 0, 0, 0]
    assert example["segment_ids"].tolist() == [1] * 7 + [2] * 4 + [0] * 3
    assert example["loss_mask"].astype(int).tolist() == [0, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0]
    counted = example["targets"][example["loss_mask"]]
    assert counted.tolist() == [20, 21, 30, 6, 7]


def test_every_pair_stands_in_one_row_with_its_reference():
    data = dataset(SIZES)
    reference = np.arange(12, dtype=np.float32).reshape(6, 2) + 1
    rows = SharedPrefixRows(data, 192, seed=0, reference=reference)
    assert rows.length == 256  # the longest pair needs 193
    seen = []
    for index in range(len(rows)):
        example = rows[index]
        count = int(example["pair_mask"].sum())
        assert example["segment_ids"].max() == count
        assert not example["reference_logprobs"][count:].any()
        seen += example["reference_logprobs"][:count].tolist()
        for number, logprobs in enumerate(example["reference_logprobs"][:count], start=1):
            pair = int(logprobs[0] - 1) // 2
            for branch in (1, 2):
                mine = (example["segment_ids"] == number) & (example["branches"] == branch)
                answer = example["targets"][mine & example["loss_mask"]]
                sequence = data.sequence(2 * pair + branch - 1)
                assert answer.tolist() == sequence.tokens[sequence.loss_mask].tolist()
    assert sorted(seen) == reference.tolist()
    total = sum(2 * n + c + r for n, c, r in SIZES)
    shared = sum(n - 1 for n, *_ in SIZES)
    assert rows.summary == (
        f"6 pairs in {len(rows)} sequences of 256, prompts once: {total - shared} tokens instead of "
        f"{total} ({shared / total:.0%} saved)"
    )


def test_mixtures_and_batches():
    parts = [(Fraction(1), dataset(SIZES[:3])), (Fraction(1), dataset(SIZES[3:], seed=1))]
    rows = SharedPrefixRows(Mixture(parts), 256, seed=0)
    assert [part.weight for part in rows.parts] == [Fraction(1, 2)] * 2
    batch = next(iterate(rows, rows=2, seed=0))
    assert batch["branches"].shape == (2, 256) and batch["pair_mask"].shape == (2, rows.pairs)


@pytest.mark.parametrize("name", TINY)
def test_the_model_cannot_tell_it_from_separate_rows(name):
    config, module, params = tiny(name)
    data = dataset(SIZES)
    apart = PairRows(data, 256)
    assert apart.length > 2 * config.window
    pairs = {
        key: jnp.asarray(np.stack([apart[i][key] for i in range(len(apart))])) for key in apart[0]
    }
    index = np.arange(12, dtype=np.float32).reshape(6, 2)
    rows = SharedPrefixRows(data, 256, seed=0, reference=index)
    packed = {
        key: jnp.asarray(np.stack([rows[i][key] for i in range(len(rows))])) for key in rows[0]
    }
    which = (packed["reference_logprobs"][..., 0] / 2).astype(jnp.int32)

    def separate(params):
        return sequence_logprobs(module, config, params, pairs)

    def together(params):
        hidden = module.apply(
            {"params": params},
            packed["tokens"],
            positions=packed["positions"],
            segment_ids=packed["segment_ids"],
            branches=packed["branches"],
        )
        logprobs = token_logprobs(
            hidden,
            params["embed"]["table"],
            packed["targets"],
            softcap=config.logit_softcap,
            mask=packed["loss_mask"],
        )
        sums = branch_sums(logprobs, packed["segment_ids"], packed["branches"], rows.pairs)
        # Back to the order of the pairs.
        sums = jnp.where(packed["pair_mask"][..., None], sums, 0)
        return jnp.zeros((6, 2)).at[which.reshape(-1)].add(sums.reshape(-1, 2))

    weight = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)

    def run(form):
        def loss(params):
            values = form(params)
            return (values * weight).sum(), values

        (_, values), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return values, grads

    (found, found_grads), (wanted, wanted_grads) = run(together), run(separate)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-4)
    assert_trees_close(found_grads, wanted_grads, 2e-4)
