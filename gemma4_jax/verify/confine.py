"""The weaker sandbox: what a process can give up by itself, before it runs a program. Sent as text.

Here: landlock (reading), seccomp (the rest), and death with the process that started it. The program
shares the machine's processes and clock with everyone, and its user's files where the kernel has no
landlock. Standard library only.
"""

import ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any
else:
    Any = object  # importing typing takes longer than Python's own start

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on x86_64 and aarch64
_SET_DEATH_SIGNAL, _SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 1, 4, 22, 38
_SIGKILL, _FILTER = 9, 2
# Of include/uapi/linux/landlock.h: what files can have done to them, by version of the interface.
_FILES = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
_BENEATH = 1


class _Ruleset(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


class _Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_uint16), ("code", ctypes.c_void_p)]


def confine() -> None:
    """argv[1:4]: the parent's process number, what may be read, joined by ":", and the filter's
    descriptor; they are taken off.

    Raises OSError where the kernel refuses seccomp.
    """
    parent, readable, descriptor = sys.argv[1:4]
    del sys.argv[1:4]
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc, libc.prctl, _SET_DEATH_SIGNAL, _SIGKILL, 0, 0, 0)
    if os.getppid() != int(parent):
        os._exit(1)  # it died before we asked to be told
    _call(libc, libc.prctl, _SET_DUMPABLE, 0, 0, 0, 0)  # no other program may look into this one
    _call(libc, libc.prctl, _SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _drop_capabilities(libc)
    restrict_reading(libc, readable.split(":"))
    with open(int(descriptor), "rb") as file:
        code = file.read()
    # Signals to itself are allowed, and a process cannot know its number before it is one.
    code = code.replace(b"PID!", os.getpid().to_bytes(4, "little"))
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = _Filter(len(code) // 8, ctypes.addressof(buffer))
    _call(libc, libc.prctl, _SET_SECCOMP, _FILTER, ctypes.byref(filter_), 0, 0)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Root's own powers, raising its limits again among them."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the interface, this process
    _call(libc, libc.capset, header, (ctypes.c_uint32 * 6)())


def landlock_version(libc: ctypes.CDLL) -> int:
    """Version of the kernel's landlock; 0 if it has none."""
    return max(0, libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def restrict_reading(libc: ctypes.CDLL, readable: list[str]) -> None:
    """From here on only what is beneath these paths can be opened, to read; where there is landlock."""
    version = landlock_version(libc)
    if not version:
        return
    files = sum(bits for since, bits in _FILES.items() if since <= version)
    rules = _Ruleset(files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = ctypes.c_size_t(24 if version >= 6 else 16 if version >= 4 else 8)
    ruleset = _call(libc, libc.syscall, _CREATE_RULESET, ctypes.byref(rules), size, 0)
    for path in readable:
        if not os.path.exists(path):
            continue
        directory = _READ_DIR if os.path.isdir(path) else 0
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _Beneath(_EXECUTE | _READ_FILE | directory, place)
        _call(libc, libc.syscall, _ADD_RULE, ruleset, _BENEATH, ctypes.byref(rule), 0)
        os.close(place)
    _call(libc, libc.syscall, _RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _call(libc: ctypes.CDLL, function: Any, *arguments: object) -> int:
    result = function(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)
