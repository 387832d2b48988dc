"""Text is the same however tokens cut it, and nothing of a stop string ever leaks."""

import random

import pytest

from gemma4_jax.sample.stopping import RowText

TEXT = "One café €5.\nUser: aab aaab END of it"


def run(tokenizer, text, stop, cuts):
    """Push `text`, encoded in pieces between `cuts`; the pieces given out, and the object."""
    row = RowText(tokenizer, stop)
    ids, before = [], 0
    for cut in [*cuts, len(text)]:
        ids += tokenizer.encode(text[before:cut], control=False)
        before = cut
    out = []
    for token in ids:
        out.append(row.push(token))
        if row.stopped:
            break
    out.append(row.finish())
    return out, row


@pytest.mark.parametrize(
    ("stop", "wanted"),
    [
        ((), TEXT),
        (("missing", "ENDE"), TEXT),
        (("END",), TEXT[: TEXT.index("END")]),
        (("\nUser:", "END"), "One café €5."),
        (("END", "\nUser:"), "One café €5."),
        (("aaab",), TEXT[: TEXT.index("aaab")]),
        (("é",), "One caf"),
        (("it",), TEXT[:-2]),
        (("itx", "t x"), TEXT),
        (("O",), ""),
    ],
)
def test_any_token_border(tokenizer, stop, wanted):
    rng = random.Random(0)
    for _ in range(20):
        cuts = sorted(rng.sample(range(1, len(TEXT)), rng.randrange(len(TEXT) - 1)))
        out, row = run(tokenizer, TEXT, stop, cuts)
        assert "".join(out) == row.text == wanted
        assert row.stopped == (wanted != TEXT)


def test_text_is_held_back_only_while_it_may_be_a_stop_string(tokenizer):
    stop, text = "aaab", "a aab aaa aaaax b aaabaa"
    row, seen = RowText(tokenizer, (stop,)), ""
    for end in range(1, text.index(stop) + len(stop)):
        (token,) = tokenizer.encode(text[end - 1], control=False)
        seen += row.push(token)
        held = max(k for k in range(len(stop)) if text[:end].endswith(stop[:k]))
        assert seen == text[: end - held]
    assert seen == "a aab aaa aaaax b " and not row.stopped
    assert row.push(tokenizer.encode("b")[0]) == "" and row.stopped


def test_half_characters_wait_and_end_as_replacements(tokenizer):
    row = RowText(tokenizer, ())
    euro = tokenizer.encode("€", control=False)
    by_bytes = [tokenizer.token_id(f"<0x{b:02X}>") for b in "é".encode()]
    assert row.push(by_bytes[0]) == ""
    assert row.push(by_bytes[1]) == "é"
    assert "".join(map(row.push, euro)) == "€"
    assert row.push(by_bytes[0]) == ""
    assert row.finish() == "\ufffd"
    assert row.text == "é€\ufffd"


def test_no_tokenizer_no_text():
    row = RowText(None, ())
    assert row.push(5) == "" and row.finish() == "" and row.text == ""
