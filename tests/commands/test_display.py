"""Streams cut into thoughts and content, whatever pieces they come in, as `parse` cuts the whole text."""

import io
import sys

import pytest

from gemma4_jax.commands.display import Display, ThoughtSplitter
from gemma4_jax.text.parse import parse

OUTPUTS = [
    "plain",
    "<|channel>thought\nhm\n<channel|>Yes.",
    "<|channel>thought\n<channel|>No.",
    "<|channel>thoughtful without a line break<channel|>No.",
    "<|channel>thought\nnever ended",
    "<|channel>thought",
    "a < b and a <| b",
    "one<|channel>thought\ntwo<channel|>three<|channel>thought\nfour<channel|>five",
    "<|channel>thought\na < b <<channel|> 2 < 3 ",
    "",
]


def split(output, size, in_thought=False):
    splitter = ThoughtSplitter(in_thought)
    pieces = []
    for i in range(0, len(output), size):
        pieces += splitter.push(output[i : i + size])
    pieces += splitter.close()
    return tuple(
        "".join(text for thought, text in pieces if thought is kind) for kind in (True, False)
    )


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_pieces_add_up_to_what_parse_finds(output, size):
    thoughts, content = split(output, size)
    message = parse(output)
    assert thoughts.strip() == (message.reasoning or "").strip()
    assert content.strip() == (message.content or "")


@pytest.mark.parametrize("size", [1, 1000])
def test_a_prompt_that_ends_in_a_thought(size):
    assert split("thought\nso <channel|>7", size, in_thought=True) == ("so ", "7")
    assert split("so <channel|>7", size, in_thought=True) == ("so ", "7")


def test_text_is_shown_as_soon_as_it_is_certain():
    splitter = ThoughtSplitter()
    assert splitter.push("Hello <") == [(False, "Hello ")]
    assert splitter.push("b") == [(False, "<b")]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def show(monkeypatch):
    """show(output, **settings) -> what a display writes to two terminals, letter by letter."""
    monkeypatch.delenv("NO_COLOR", raising=False)

    def call(output, **settings):
        out, err = Terminal(), Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        display = Display(**settings)
        for letter in output:
            display.push(letter)
        display.close()
        return out.getvalue(), err.getvalue()

    return call


def test_thoughts_are_dimmed_and_apart(show):
    out, err = show("<|channel>thought\nhm<channel|>\n\nYes,  indeed. \n\n")
    assert out == "Yes,  indeed.\n"
    assert err == "\x1b[2mhm\n\x1b[0m"


def test_colour_ends_with_an_unfinished_thought(show):
    assert show("<|channel>thought\nhm") == ("", "\x1b[2mhm\n\x1b[0m")


def test_no_colour_if_unwanted(show, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert show("<|channel>thought\nhm<channel|>Yes") == ("Yes\n", "hm\n")


def test_raw_text_is_left_alone(show):
    assert show("  <|channel>thought\nx ", raw=True) == ("  <|channel>thought\nx \n", "")
