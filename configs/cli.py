"""From the words of a command line to a configuration: `PRESET [--a.b value]`, by tyro.

Every mistake is one line on stderr and exit code 2. `--optim.peak-lr` and `--optim.peak_lr` are the
same. Not here: what a configuration means (configs/schema.py).
"""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from configs.checks import ConfigError
from configs.schema import flatten, require

Config = TypeVar("Config")


def fail(message: str) -> NoReturn:
    """Print `error: message` and leave with exit code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse(
    prog: str,
    presets: Mapping[str, Callable[[], Config]],
    argv: Sequence[str],
    require: Callable[[Any], None] = require,
) -> Config:
    """Configuration that `argv` asks for.

    prog: how the program is called, for help texts, such as "python -m train.sft".
    presets: name -> function that returns the configuration the flags then change.
    argv: words after the program's name. require: raises `ConfigError` where something that only the user can
    name is empty. Leaves with exit code 2 (mistake) or 0 (help).
    """
    if not argv or argv[0] in ("-h", "--help"):
        text = _overview(prog, presets)
        if argv:
            print(text)
            raise SystemExit(0)
        fail(f"no preset; known: {', '.join(presets)} (help: {prog} --help)")
    name, *flags = argv
    if name not in presets:
        fail(f"unknown preset {name!r}{_nearest(name, presets)} (known: {', '.join(presets)})")
    preset = presets[name]()
    if not {"-h", "--help"} & set(flags):
        _check_flags(f"{prog} {name}", flags, [dotted for dotted, _ in flatten(preset)])
    try:
        config = _run_tyro(f"{prog} {name}", preset, flags)
        require(config)
    except ConfigError as error:
        fail(str(error))
    return config


def _overview(prog: str, presets: Mapping[str, Callable[[], Config]]) -> str:
    """Help without a preset: what can be called, one line a preset."""
    width = max(map(len, presets))
    lines = [f"usage: {prog} PRESET [--a.b value ...]", "", "presets:"]
    for name, preset in presets.items():
        lines.append(f"  {name:<{width}}  {(preset.__doc__ or '').strip().splitlines()[0]}")
    lines += ["", f"All flags of a preset, with their values: {prog} PRESET --help"]
    return "\n".join(lines)


def _nearest(word: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def _check_flags(prog: str, flags: Sequence[str], names: Sequence[str]) -> None:
    """Leave with one line if a flag is none of the configuration's (tyro answers with a box)."""
    known = {name.replace("_", "-") for name in names}
    for word in flags:
        if not word.startswith("--"):
            continue
        flag = word[2:].split("=", 1)[0].replace("_", "-")
        section, dot, leaf = flag.rpartition(".")
        positive = section + dot + leaf.removeprefix("no-")
        if flag not in known and positive not in known:
            fail(f"unknown flag --{flag}{_nearest(flag, known, '--')} (all flags: {prog} --help)")


def _run_tyro(prog: str, default: Config, flags: Sequence[str]) -> Config:
    """tyro.cli, with its boxed complaint turned into a `ConfigError` of one line."""
    import tyro

    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(type(default), prog=prog, default=default, args=list(flags))
    except SystemExit as leaving:
        if leaving.code == 0:
            raise
        raise ConfigError(_first_paragraph(errors.getvalue())) from None


def _first_paragraph(box: str) -> str:
    """The complaint in tyro's box: its lines between the title and the first rule."""
    words: list[str] = []
    for line in box.splitlines():
        text = line.strip().strip("│").strip()
        if text.startswith("╭"):
            continue
        if text.startswith(("─", "╰")):
            break
        words.append(text)
    complaint = " ".join(words) or box.strip()
    return re.sub(r"^Error parsing [a-z][\w.]*: ", "", complaint)
