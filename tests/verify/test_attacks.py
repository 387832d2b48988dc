"""What attacks the sandbox is contained by it: as root and as an ordinary user, in both modes.

The programs are in `attacks.py`; here is what each may not have achieved.
"""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gemma4_jax.verify.seccomp import ARCHITECTURES
from tests.verify.attacks import CHEATS, PROGRAMS, SECRET
from tests.verify.modes import BOTH

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534
PYTHONS = (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3")
Report = dict[str, Any]


@functools.cache
def ordinary_python() -> str:
    """A Python that an ordinary user can run on this clone; "" if there is none."""
    code = "import sys, gemma4_jax.verify.sandbox; sys.exit(sys.version_info < (3, 11))"
    for python in PYTHONS:
        try:
            if _python(python, NOBODY, "-c", code).returncode == 0:
                return python
        except OSError:
            continue
    return ""


def _python(python: str, user: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    other = {} if user == os.getuid() else {"user": user, "group": user, "extra_groups": []}
    return subprocess.run(
        [os.path.realpath(python) if python == sys.executable else python, "-B", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "GITHUB_TOKEN": SECRET},
        capture_output=True,
        text=True,
        timeout=300,
        **other,
    )


@pytest.fixture(scope="module", params=["root", "an ordinary user"])
def who(request: pytest.FixtureRequest) -> tuple[str, int]:
    """Python to run, and the user to be."""
    if request.param == "root":
        if os.getuid():
            pytest.skip("the tests do not run as root")
        return sys.executable, 0
    if os.getuid():
        return sys.executable, os.getuid()
    if not ordinary_python():
        pytest.skip(f"no Python >= 3.11 that another user may run: tried {', '.join(PYTHONS)}")
    return ordinary_python(), NOBODY


@pytest.fixture(scope="module", params=BOTH)
def mode(request: pytest.FixtureRequest) -> str:
    if os.uname().machine not in ARCHITECTURES:
        pytest.skip(f"no seccomp filter for {os.uname().machine}")
    return str(request.param)


@pytest.fixture(scope="module")
def report(who: tuple[str, int], mode: str) -> Report:
    python, user = who
    ended = _python(python, user, "-m", "tests.verify.attacks", mode)
    if "cannot make a sandbox here" in ended.stderr:
        pytest.skip(ended.stderr.strip().splitlines()[-1])
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["user"] == user
    return found


ENDED = {
    "endless loop": "timeout",
    "sleep, deaf to signals": "timeout",
    "closed outputs": "timeout",
    "endless output": "output",
    "endless errors": "output",
    "memory at once": "memory",
    "memory in pieces": "memory",
    "crash": "signal",
}
#: What the programs print, all of it, when nothing they try succeeds.
REFUSED = {
    "forks": {"0"},
    "network": {"PermissionError"},
    "writing elsewhere": {"OSError", "FileNotFoundError", "PermissionError"},
    "new namespaces": {"Operation", "not", "permitted", "Resource", "temporarily", "unavailable"},
    "the kernel": {"Operation", "not", "permitted", "Function", "implemented"},
    "higher limits": {"ValueError"},
    "other processes": {
        *("Operation", "not", "permitted"),
        *("ProcessLookupError", "PermissionError", "FileNotFoundError"),
    },
    "kill everything": {"ProcessLookupError", "PermissionError"},
    "hidden memory": {"PermissionError", "False", "FileNotFoundError", "OSError"},
    "inherited descriptors": set(),
    "daemon": {"BlockingIOError", "ZeroDivisionError"},
}


@pytest.mark.parametrize("attack", ENDED)
def test_programs_without_an_end_get_one(report: Report, attack: str) -> None:
    outcome = report["attacks"][attack]
    assert outcome["status"] == ENDED[attack], outcome
    assert len(outcome["stdout"]) <= 64 << 10
    assert len(outcome["stderr"]) <= 64 << 10
    if attack == "crash":
        assert outcome["exit_code"] == 139


@pytest.mark.parametrize("attack", REFUSED)
def test_nothing_they_try_is_done(report: Report, attack: str) -> None:
    outcome = report["attacks"][attack]
    assert outcome["status"] == "ok", outcome
    assert set(outcome["stdout"].split()) <= REFUSED[attack], outcome
    # At least as many lines as tries: a program that printed nothing tried nothing.
    assert attack == "inherited descriptors" or outcome["stdout"].strip()


def test_nobody_outside_was_reached(report: Report) -> None:
    assert report["victim lives"]
    assert report["connections"] == []
    assert report["secret"] == SECRET
    assert report["files"] == ["secret"]


def test_the_disk_is_small_or_none(report: Report, mode: str) -> None:
    written = int(report["attacks"]["filling the disk"]["stdout"])
    assert written == (16 << 20 if mode == "bubblewrap" else 0)
    expected = "output" if mode == "bubblewrap" else "failed"
    assert report["attacks"]["many files"]["status"] == expected


def test_threads_are_bounded(report: Report, mode: str, who: tuple[str, int]) -> None:
    outcome = report["attacks"]["threads"]
    # By the memory of their stacks; and by number, where the kernel counts them by namespace. Root's
    # it does not count.
    exact = mode == "bubblewrap" and who[1] and _release() >= (5, 14)
    assert outcome["status"] == "ok", outcome
    assert 1 <= int(outcome["stdout"]) < (64 if exact else 8000)


def test_the_environment_is_empty(report: Report) -> None:
    shown = report["attacks"]["the caller's environment"]["stdout"]
    assert SECRET not in shown
    assert "GITHUB_TOKEN" not in shown
    assert shown.startswith("{")


def test_files_are_out_of_sight(report: Report, mode: str) -> None:
    if mode == "weak" and not report["landlock"] > 0:
        pytest.skip("the weak mode hides no files on a kernel without landlock")
    shown = report["attacks"]["the caller's files"]["stdout"]
    assert SECRET not in shown
    assert "root:" not in shown
    assert "processor" not in shown


@pytest.mark.parametrize("cheat", CHEATS)
def test_no_cheat_passes(report: Report, cheat: str) -> None:
    tested = report["cheats"][cheat]
    assert not tested["passed"]
    assert tested["note"]


def test_the_honest_one_passes(report: Report) -> None:
    assert report["honest"]["passed"], report["honest"]


def test_every_attack_is_looked_at() -> None:
    apart = {"filling the disk", "many files", "threads"}
    apart |= {"the caller's environment", "the caller's files"}
    assert set(PROGRAMS) == {*ENDED, *REFUSED, *apart}


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split(".")[:2])
