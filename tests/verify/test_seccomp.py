"""The filter, run by an interpreter of its own for every rule; and its numbers against the kernel's headers."""

import errno
import re
import struct
from pathlib import Path

import pytest

from gemma4_jax.errors import UserError
from gemma4_jax.verify.seccomp import ARCHITECTURES, NUMBERS, OWN_PID, filter_bytes, rules

ALLOWED, KILLED = "allowed", "killed"
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def verdict(code: bytes, architecture: int, number: int, *arguments: int) -> str | int:
    """What the kernel would do: an error number, or one of the two words.

    The semantics are those of Documentation/networking/filter.rst, for the instructions that occur.
    """
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    program = list(struct.iter_unpack("<HBBI", code))
    at, loaded = 0, 0
    while True:
        operation, if_true, if_false, value = program[at]
        at += 1
        if operation == 0x20:  # ld [k]
            (loaded,) = struct.unpack_from("<I", data, value)
        elif operation == 0x06:  # ret k
            action, detail = value & 0xFFFF0000, value & 0xFFFF
            return {0x7FFF0000: ALLOWED, 0x80000000: KILLED, 0x00050000: detail}[action]
        else:
            holds = {0x15: loaded == value, 0x35: loaded >= value, 0x45: bool(loaded & value)}
            at += if_true if holds[operation] else if_false


@pytest.fixture(params=ARCHITECTURES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def check(machine: str, weak: bool, name: str, *arguments: int) -> str | int:
    number = NUMBERS[name][list(ARCHITECTURES).index(machine)]
    assert number is not None
    return verdict(filter_bytes(weak, machine), ARCHITECTURES[machine], number, *arguments)


@pytest.mark.parametrize("weak", [False, True])
def test_every_plain_rule_refuses_its_call(machine: str, weak: bool) -> None:
    column = list(ARCHITECTURES).index(machine)
    plain = [
        rule for rule in rules(weak) if rule.test is None and NUMBERS[rule.call][column] is not None
    ]
    assert len(plain) > 60
    for rule in plain:
        assert check(machine, weak, rule.call) == rule.error, rule


def test_what_python_needs_is_allowed(machine: str) -> None:
    code, needed = filter_bytes(False, machine), range(450)
    listed = {number for numbers in NUMBERS.values() for number in numbers}
    for number in needed:
        if number not in listed:
            assert verdict(code, ARCHITECTURES[machine], number) == ALLOWED, number


def test_threads_are_no_processes(machine: str) -> None:
    thread = 0x3D0F00  # as glibc makes one
    assert check(machine, False, "clone", thread) == ALLOWED
    assert check(machine, False, "clone", 17) == errno.EAGAIN
    assert check(machine, False, "clone3", 0) == errno.ENOSYS


def test_terminals_get_no_input(machine: str) -> None:
    assert check(machine, False, "ioctl", 0, 0x5401) == ALLOWED  # TCGETS
    assert check(machine, False, "ioctl", 0, 0x5412) == errno.EPERM
    assert check(machine, False, "ioctl", 0, 0xFFFFFFFF_00005412) == errno.EPERM


def test_foreign_calls_and_new_ones(machine: str) -> None:
    code, own = filter_bytes(False, machine), ARCHITECTURES[machine]
    for architecture in (0x40000003, 0x40000028, *ARCHITECTURES.values()):  # i386, arm
        expected = ALLOWED if architecture == own else KILLED
        assert verdict(code, architecture, 100) == expected
    assert verdict(code, own, 449) == ALLOWED
    for number in (450, 462, 0x40000000, 0x40000000 + 39, 0xFFFFFFFF):
        assert verdict(code, own, number) == errno.ENOSYS


def test_weakly_confined_files_are_read_only(machine: str) -> None:
    for flags in (1, 2, 0o102, 0o2001, 0o1000, 0o20200002):
        assert check(machine, True, "openat", 0, 0, flags) == errno.EROFS
        assert check(machine, False, "openat", 0, 0, flags) == ALLOWED
    assert check(machine, True, "openat", 0, 0, 0o2000000) == ALLOWED  # O_CLOEXEC
    assert check(machine, True, "execve") == errno.EPERM
    assert check(machine, False, "execve") == ALLOWED


def test_weakly_confined_signals_reach_only_itself(machine: str) -> None:
    for name in ("kill", "tkill", "tgkill", "rt_sigqueueinfo"):
        assert check(machine, True, name, OWN_PID) == ALLOWED
        for other in (0, 1, 0xFFFFFFFF):
            assert check(machine, True, name, other) == errno.EPERM
    assert check(machine, True, "prlimit64", 0) == ALLOWED
    assert check(machine, True, "prlimit64", 7) == errno.EPERM


def test_numbers_are_the_kernels(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"no {header}")
    text = header.read_text()
    known = {name: int(n) for name, n in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    column = list(ARCHITECTURES).index(machine)
    for name, numbers in NUMBERS.items():
        assert known.get(name) == numbers[column], name


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(
        UserError, match=r"no seccomp filter for 'riscv64' \(known: x86_64, aarch64\)"
    ):
        filter_bytes(machine="riscv64")
