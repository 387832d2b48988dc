"""The strong sandbox: namespaces of its own, made by bubblewrap (`bwrap`), and a seccomp filter.

Here: the command line. Nothing of the machine is in it but a Python and the system's libraries, read-only;
no network, no other process, no /proc, no capability; one small directory in memory to write to.
Not here: limits, which the process sets itself (`inside.py`), and the clock (`process.py`).
"""

import functools
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gemma4_jax.errors import UserError

OLDEST = (0, 8)  # --size came with 0.7, --disable-userns with 0.8
_WEAKER = 'accept less with isolation="weak" (docs/sandbox.md)'


@functools.cache
def executable() -> str:
    """Path of bwrap; UserError if there is none, or one too old."""
    found = shutil.which("bwrap")
    if found is None:
        raise UserError(
            "programs need bubblewrap to run in, and there is no bwrap; "
            f"install it (apt install bubblewrap), or {_WEAKER}"
        )
    shown = subprocess.run([found, "--version"], capture_output=True, text=True, env={}).stdout
    version = tuple(map(int, re.findall(r"\d+", shown)[:2]))
    if version < OLDEST:
        raise UserError(f"{found} is {shown.strip()!r}; install 0.8 or newer, or {_WEAKER}")
    return found


def failed(stderr: str) -> UserError:
    """The error for a sandbox that did not start."""
    lines = stderr.strip().splitlines()
    said = lines[-1] if lines else "it said nothing"
    return UserError(
        f"bubblewrap cannot make a sandbox here: {said}; allow user namespaces, or {_WEAKER}"
    )


def threads() -> int:
    """How many threads a program may have; 0: no limit of their own.

    Since Linux 5.14 they are counted by namespace. Before, every process of the user would count.
    """
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    return 64 if release >= (5, 14) else 0


def command(
    argv: Sequence[str],
    *,
    readable: Sequence[Path],
    disk_bytes: int,
    seccomp: int,
    stdin: int | None = None,
) -> list[str]:
    """`argv`, in a sandbox.

    readable: beside /usr. seccomp: descriptor of the filter. stdin: descriptor with what /dev/stdin
    shows, which is otherwise a link into /proc; other descriptors are inherited.
    """
    options = [executable(), "--unshare-all", "--unshare-user", "--disable-userns"]
    options += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    options += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
    options += ["--ro-bind", "/usr", "/usr"]
    for path in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        if os.path.islink(path):
            options += ["--symlink", os.readlink(path), path]
        else:
            options += ["--ro-bind-try", path, path]
    for path in ("/etc/ld.so.cache", "/etc/alternatives", *map(str, readable)):
        options += ["--ro-bind-try", path, path]
    for device in ("null", "zero", "full", "random", "urandom"):
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    if stdin is not None:
        options += ["--ro-bind-data", str(stdin), "/dev/stdin"]
    options += ["--size", str(disk_bytes), "--tmpfs", "/w", "--chdir", "/w", "--remount-ro", "/"]
    return [*options, "--seccomp", str(seccomp), "--", *argv]
