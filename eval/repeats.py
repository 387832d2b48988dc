"""What several answers to one question are worth: pass@k, maj@k, and how runs differ.

    pass_at_k(right, n, k)             how likely k answers hold a right one, from n >= k answers
    majority_at_k(votes, scores, k)    the score of what most of k answers say

Each is of one question; a benchmark's number is their mean over questions, with `stats.clustered` around it.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

from eval.stats import standard_error


def pass_at_k(right: int, n: int, k: int) -> float:
    """The share of sets of k of a question's n answers that hold a right one, 1 - C(n - right, k) / C(n, k).

    Unbiased for the chance that k fresh answers hold a right one; 1 - (1 - right / n)^k is not, it is too low.
    Source: Chen et al., arXiv 2107.03374, section 2.1. Raises ValueError unless 0 <= right <= n, 1 <= k <= n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"need 0 <= right <= n and 1 <= k <= n, got {right} of {n}, k {k}")
    # C(n - right, k) / C(n, k) as a product: the binomials of 1000 answers have no float.
    return 1.0 - math.prod(1.0 - k / i for i in range(n - right + 1, n + 1))


def majority(votes: Sequence[str | None], scores: Sequence[float]) -> float:
    """The score of the answer that most say; None is no vote, and nobody's vote is 0.

    Where several answers tie, the mean of theirs. Answers that are spelt alike and judged differently (their
    choices may have been shuffled) count as their mean.
    """
    by_vote: dict[str, list[float]] = defaultdict(list)
    for vote, score in zip(votes, scores, strict=True):
        if vote is not None:
            by_vote[vote].append(score)
    most = max(map(len, by_vote.values()), default=0)
    tied = [sum(found) / most for found in by_vote.values() if len(found) == most]
    return sum(tied) / len(tied) if tied else 0.0


def majority_at_k(votes: Sequence[str | None], scores: Sequence[float], k: int) -> float:
    """`majority` of k answers: the mean over as many sets of k that share no answer as there are, in order.

    Answers are exchangeable, so the mean is unbiased. Raises ValueError unless 1 <= k <= len(votes).
    """
    if not 1 <= k <= len(votes):
        raise ValueError(f"need 1 <= k <= {len(votes)}, the number of answers, got {k}")
    starts = range(0, len(votes) - k + 1, k)
    found = [majority(votes[i : i + k], scores[i : i + k]) for i in starts]
    return sum(found) / len(found)


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`."""
    return [2**i for i in range(most.bit_length())]


def across_runs(runs: Sequence[float]) -> float | None:
    """Standard error of the mean of whole runs: run i is every question's answer number i.

    It says how far the mean would move if the same questions were asked again, and nothing of other questions.
    None for fewer than two runs.
    """
    return standard_error(runs)
