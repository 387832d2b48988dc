"""`gemma4` itself: help without jax, misspelt commands, quiet endings."""

import subprocess
import sys

import pytest

from gemma4_jax import __version__, cli


def run(words, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.main(words)
    return leaving.value.code, capsys.readouterr()


def test_help_lists_every_command(capsys):
    cli.main(["--help"])
    out = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"  {name} " in out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(capsys, name):
    code, output = run([name, "--help"], capsys)
    assert code == 0 and output.out.startswith(f"usage: gemma4 {name}")


def test_version(capsys):
    cli.main(["--version"])
    assert capsys.readouterr().out == f"gemma4_jax {__version__}\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "no command (known: generate"),
        (["genrate"], "unknown command 'genrate'; did you mean 'generate'?"),
        (["--raw"], "unknown command '--raw'"),
    ],
)
def test_mistakes_are_one_line(capsys, words, part):
    code, output = run(words, capsys)
    assert code == 2
    assert output.err.startswith("error: ") and output.err.count("\n") == 1
    assert part in output.err


def test_values_are_no_flags(capsys):
    parser = cli.CommandParser(prog="x")
    parser.add_argument("text")
    parser.add_argument("--seed", type=int)
    assert parser.read(["--seed", "-3", "--not a flag"]).seed == -3
    assert parser.read(["--", "--see"]).text == "--see"


def test_ctrl_c_is_quiet(capsys, monkeypatch):
    def interrupted(words):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupted)
    code, output = run(["chat"], capsys)
    assert code == 130 and output.err == ""


PROGRAM = """
import sys
from gemma4_jax.cli import COMMANDS, main
for words in (["--help"], *([name, "--help"] for name in COMMANDS)):
    try:
        main(words)
    except SystemExit as leaving:
        assert not leaving.code, leaving.code
heavy = {"jax", "numpy", "flax", "orbax", "sentencepiece", "tokenizers"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: gemma4 ") == 1 + len(cli.COMMANDS)


def test_a_closed_pipe_is_quiet():
    command = [sys.executable, "-m", "gemma4_jax", "--help"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141
