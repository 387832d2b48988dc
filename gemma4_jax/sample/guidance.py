"""llguidance with our tokenizers: constraints as compiled grammars.

Here: a tokenizer's pieces as that library wants them, and its complaints as one line. The library is an
extra (`pip install 'gemma4_jax[constrained]'`) and is imported here alone. https://github.com/guidance-ai/llguidance
"""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from gemma4_jax.errors import UserError
from gemma4_jax.sample.constraints import Constraint
from gemma4_jax.text.tokenizer import Tokenizer

# Compact: endless white space is what constrained models loop in. No \uXXXX: written that way a name could
# come twice unnoticed, and half a surrogate pair is no text.
_JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ",",
    "key_separator": ":",
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
    "coerce_one_of": False,
}
# What the library says where it can neither go on nor end.
_DEAD_ENDS = ("NoExtension", "NoExtensionBias", "no reason given")
_NAMES = {"json": "schema", "regex": "regex", "lark": "grammar"}


def matcher(constraint: Constraint, tokenizer: Tokenizer) -> Any:
    """A fresh `LLMatcher`. Raises UserError for what does not compile, and for what nothing satisfies."""
    return _compiled(constraint, tokenizer).deep_copy()


@functools.lru_cache(maxsize=256)
def _compiled(constraint: Constraint, tokenizer: Tokenizer) -> Any:
    library = _library()
    text = constraint.text
    if constraint.kind == "json":
        compiled = library.LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)
    elif constraint.kind == "regex":
        compiled = library.LLMatcher.grammar_from_regex(text)
    else:
        compiled = library.LLMatcher.grammar_from_lark(text)
    limits = library.LLParserLimits(verbose_errors=False)
    found = library.LLMatcher(_vocabulary(tokenizer), compiled, log_level=0, limits=limits)
    if found.is_error():
        raise UserError(f"{_described(constraint)}: {complaint(found)}")
    probe = found.deep_copy()
    probe.compute_bitmask()  # stops where no token can begin what is described
    if probe.is_stopped() and not probe.is_accepting():
        why = complaint(probe)
        why = "nothing satisfies it" if why in _DEAD_ENDS else why
        raise UserError(f"{_described(constraint)}: {why}")
    return found


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    """The tokenizer for the library; 1.5 s for Gemma's 262 144 pieces, once a process."""
    return _library().LLTokenizer(_Pieces(tokenizer))


class _Pieces:
    """The attributes that the library reads off a tokenizer. Control tokens match no text."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = tokenizer.eos_id
        self.tokens = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = sorted({tokenizer.eos_id, *tokenizer.control_tokens.values()})

    def __call__(self, text: str) -> list[int]:
        """How a model would write `text`: what a grammar leaves no choice about is written so."""
        return self._tokenizer.encode(text, control=False)


def complaint(found: Any) -> str:
    """What is wrong with a matcher, in one line."""
    text = str(found.get_error())
    if reason := re.search(r"^error: (.*)$", text, re.MULTILINE):
        return reason[1]
    text = (
        text.removeprefix("Unsatisfiable schema: ").splitlines()[0] if text else "no reason given"
    )
    return text if len(text) <= 160 else f"{text[:160]}..."


def _described(constraint: Constraint) -> str:
    shown = constraint.text if constraint.kind == "regex" else ""
    return _NAMES[constraint.kind] + (f" {json.dumps(shown[:60])}" if shown else "")


def _library() -> Any:
    try:
        import llguidance
    except ImportError:
        raise UserError(
            "constrained output needs llguidance: pip install 'gemma4_jax[constrained]'"
        ) from None
    return llguidance
