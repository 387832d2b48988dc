"""Does a server do as it is told? A few short requests before the long ones.

Servers ignore what they do not know without a word. A score taken without top_k, or as the mean of copies of
one sample, looks like any other.
"""

from collections.abc import Callable

# What at temperature 2 from a whole vocabulary never comes out the same twice.
_QUESTION = "Write down twenty random words."
_TOKENS = 24

# (seed, top_k) -> what the server writes at temperature 2
Write = Callable[[int, int], str]


def probe(write: Write, *, top_k: bool) -> list[str]:
    """What is wrong, a sentence each. top_k: whether it is going to be asked for.

    Says nothing where it cannot tell: a model that is certain of its words at any temperature.
    """
    found = []
    if top_k:
        # One token to draw from leaves nothing to draw; near ties may turn over between batches, but not in
        # all.
        likeliest = [write(seed, 1) for seed in (1, 2, 3)]
        if len(set(likeliest)) == len(likeliest):
            found.append(
                "the server ignores top_k: answers are drawn from more tokens than asked for"
            )
    first, again, *others = (write(seed, -1) for seed in (4, 4, 5, 6))
    if first.strip() and {first} == {again, *others}:
        found.append(
            "the server writes the same for every seed at temperature 2: samples of an item are copies of one, "
            "and their mean is that of a single answer"
        )
    elif first != again:
        found.append(
            "the server ignores seed: samples differ, but this run cannot be repeated exactly"
        )
    return found


def question(model: str, seed: int, top_k: int) -> dict[str, object]:
    """The body of a request of the probe."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "max_tokens": _TOKENS,
        "temperature": 2.0,
        "top_p": 1.0,
        "top_k": top_k,
        "seed": seed,
        "chat_template_kwargs": {"enable_thinking": False},
    }
