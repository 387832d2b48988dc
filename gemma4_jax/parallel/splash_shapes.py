"""Which shapes the splash kernel takes, and in which tiles: for the kernel's caller, and for plans.

Not here: masks that it has none for (`splash.refusal`).
"""

# Width of the vector unit: tiles and heads come in multiples of it.
_LANES = 128
# Edge of a tile: 512 x 512 float32 scores, and q, k, v of 512 x 512 numbers, fit a core's 16 MiB and more.
_TILE = 512
# The kernel looks at every tile of a mask on the host as it is made: half a second for 8192 tokens, nine for
# 32 768, and that once for each kind of layer and pass.
_LONGEST = 16_384


def shape_refusal(tokens: int, head_dim: int) -> str | None:
    """Why the kernel does not take rows of so many tokens and heads of so many numbers; None if it does."""
    if tokens % _LANES or tokens > _LONGEST:
        return f"rows of {tokens} tokens are no multiple of {_LANES} up to {_LONGEST}"
    if head_dim % _LANES:
        return f"heads of {head_dim} numbers are no multiple of {_LANES}"
    return None


def tile(tokens: int) -> int:
    """Edge of a tile: the largest of 512, 256 and 128 that divides the tokens."""
    edge = _TILE
    while tokens % edge:
        edge //= 2
    return edge
