"""What solved problems say of a contestant: a Codeforces rating by CodeElo's rules, and one by likelihood
alone.

    codeelo_rating(contest, {"2024A": ["WA", "AC"]})      # against the people who took part; None if too
    few did maximum_likelihood(difficulties, shares)              # from the problems' own ratings; no
    contest needed

The two are different things. Only the first may be called a Codeforces Elo; the second is the "ML rating".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gemma4_jax.errors import UserError

SCALE = 400 / math.log(10)
FEWEST = 200  # a contest of no more rated people than this is left out


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A contest as Codeforces' API gives it.

    problems: name ("2024A") and points, None in contests with penalties for time. rows: (points, penalty)
    of the rated people, best first. old_ratings: theirs before the contest, in any order.
    """

    problems: Sequence[tuple[str, float | None]]
    rows: Sequence[tuple[float, float]]
    old_ratings: Sequence[int]


def contest_from_api(standings: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> Contest:
    """From the `result` of contest.standings (showUnofficial=false) and that of contest.ratingChanges.

    People without a rating change are left out of the standings, as CodeElo does.
    """
    try:
        rated = {change["handle"] for change in changes}
        return Contest(
            problems=[
                (f"{p['contestId']}{p['index']}", p.get("points")) for p in standings["problems"]
            ],
            rows=[
                (row["points"], row["penalty"])
                for row in standings["rows"]
                if row["party"]["members"][0]["handle"] in rated
            ],
            old_ratings=[int(change["oldRating"]) for change in changes],
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"these are no standings and rating changes of Codeforces' API: {type(error).__name__} {error}"
        ) from None


def codeelo_rating(contest: Contest, verdicts: Mapping[str, Sequence[str]]) -> int | None:
    """The rating at which the place in this contest is the expected one (CodeElo, arXiv 2501.01257,
    calc_rating.py).

    verdicts: by problem, those of the submissions in order; "AC" is a solution. Before the first of them
    each failed one costs 50 points (never below 0), or 10 of penalty where problems have no points. The
    place counts from 0: that of the best person who is worse (the number of people if none is). The rating
    is whole, found by halving [0, highest old rating + 100]. None unless more than 200 people have both a
    place and a rating.
    """
    n = len(contest.rows)
    if n <= FEWEST or n != len(contest.old_ratings):
        return None
    score, penalty = 0.0, 0
    for name, points in contest.problems:
        tries = list(verdicts.get(name, ()))
        if "AC" in tries:
            failed = tries.index("AC")
            if points is None:
                score, penalty = score + 1, penalty + 10 * failed
            else:
                score += max(0, points - 50 * failed)
    worse = (
        i
        for i, (points, minus) in enumerate(contest.rows)
        if points < score or (points == score and minus > penalty)
    )
    place = next(worse, n)
    low, high = 0, max(contest.old_ratings) + 100
    while high - low > 1:
        middle = (low + high) // 2
        seed = 1.0
        for old in contest.old_ratings:
            seed += 1 / (1 + 10 ** ((middle - old) / 400))
        low, high = (low, middle) if seed < place else (middle, high)
    return low


def maximum_likelihood(
    difficulties: Sequence[float], shares: Sequence[float]
) -> tuple[float, float] | None:
    """Rating and its standard error, if a problem of difficulty d is solved with chance 1/(1+10^((d-r)/400)).

    shares: how many of its samples solved each problem, 0 to 1. The error is that of one trial per problem
    (from the Fisher information): more samples of the same problems do not make it smaller. None if all or
    nothing is solved.
    """
    if len(difficulties) != len(shares) or not difficulties:
        raise ValueError(
            f"need as many shares as problems, got {len(shares)} and {len(difficulties)}"
        )
    solved = sum(shares)
    if solved <= 0 or solved >= len(shares):
        return None
    low, high = min(difficulties) - 4000.0, max(difficulties) + 4000.0
    for _ in range(80):
        middle = (low + high) / 2
        if sum(_chance(middle, d) for d in difficulties) < solved:
            low = middle
        else:
            high = middle
    rating = (low + high) / 2
    chances = [_chance(rating, d) for d in difficulties]
    information = sum(p * (1 - p) for p in chances) / SCALE**2
    return rating, 1 / math.sqrt(information)


def _chance(rating: float, difficulty: float) -> float:
    return 1 / (1 + 10 ** ((difficulty - rating) / 400))
