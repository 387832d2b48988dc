"""Errors that a user caused and can mend.

A `UserError` carries one line: the value that was given, the bound it broke, and the way out. Command
lines print it without a traceback (`report_user_errors`); library callers can catch it as a `ValueError`.
"""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator


class UserError(ValueError):
    """Bad input; `str(error)` is one line that says what is wrong and what to do."""


def unknown(kind: str, name: object, known: Iterable[object]) -> UserError:
    """Error for a `name` that is none of the `known` ones of its `kind`, with the nearest match."""
    names = sorted(str(k) for k in known)
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return UserError(f"unknown {kind} {str(name)!r}{hint} (known: {', '.join(names)})")


@contextlib.contextmanager
def report_user_errors() -> Iterator[None]:
    """For a command line's `main`: print a `UserError` as one line on stderr and exit with 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
