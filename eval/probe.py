"""Does a server do as it is told? A few short requests before the long ones.

Servers ignore what they do not know without a word. A score taken without top_k, or as the mean of copies of
one sample, looks like any other.
"""

from collections.abc import Callable

# What at temperature 2 from a whole vocabulary never comes out the same twice.
_QUESTION = "Write down twenty random words."
_TOKENS = 24

# Where servers have defaults of their own that bend what is drawn (llama.cpp: min_p 0.05, and behind Python a
# penalty of 1.1 on repetition, under another name than vLLM's): none of it.
UNBENT = {
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "repeat_penalty": 1.0,
}

# What says in a request that top_k is off. Some servers take only the first, some only the second.
ALL_TOKENS = (-1, 0)

# (seed, top_k) -> what the server writes at temperature 2
Write = Callable[[int, int], str]
# thinking -> tokens of the prompt, as the server counts them; 0: it does not
Count = Callable[[bool], int]


def probe(write: Write, count: Count, off: int, *, top_k: bool) -> list[str]:
    """What is wrong, a sentence each. off: top_k that this server takes for none. top_k: whether it is going to
    be asked for.

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
    first, again, *others = (write(seed, off) for seed in (4, 4, 5, 6))
    if first.strip() and {first} == {again, *others}:
        found.append(
            "the server writes the same for every seed at temperature 2: samples of an item are copies of one, "
            "and their mean is that of a single answer"
        )
    elif first != again:
        found.append(
            "the server ignores seed: samples differ, but this run cannot be repeated exactly"
        )
    thinking, plain = count(True), count(False)
    if thinking and thinking == plain:
        found.append(
            "the server ignores chat_template_kwargs: its prompt is as long with enable_thinking as without; "
            "whether the model thinks is decided where the server is started, not by this run"
        )
    return found


def question(
    model: str, seed: int, top_k: int, *, tokens: int = _TOKENS, thinking: bool = False
) -> dict[str, object]:
    """The body of a request of the probe."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": _QUESTION}],
        "max_tokens": tokens,
        "temperature": 2.0,
        "top_p": 1.0,
        "top_k": top_k,
        "seed": seed,
        "chat_template_kwargs": {"enable_thinking": thinking},
        **UNBENT,
    }
