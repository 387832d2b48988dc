"""What a person sees of an answer, letter by letter, on two terminals."""

import io
import sys

import pytest

from gemma4_jax.commands.display import Display


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


def test_a_call_is_shown_apart_on_a_line_of_its_own(show):
    out, err = show('I look.<|tool_call>call:find{what:<|"|>tea<|"|>,most:3}<tool_call|>Found.')
    assert out == "I look.Found.\n"
    assert err == '\x1b[2m\n[find {"what": "tea", "most": 3}]\n\x1b[0m'


def test_an_unfinished_control_token_is_shown_as_parse_reads_it(show):
    assert show("Hi <|tool_")[0] == "Hi <|tool_\n"
    assert show("Hi <|tool_call>")[0] == "Hi\n"
    assert show("Hi <|tool_response>12")[0] == "Hi\n"
