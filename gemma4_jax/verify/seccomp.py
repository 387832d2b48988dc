"""System calls that a program may not make, as a filter that the kernel runs (seccomp, classic BPF).

    filter_bytes()                       # for `bwrap --seccomp`: an array of the kernel's struct sock_filter
    filter_bytes(weak=True)              # for a process that shares the machine's files and processes

Here: the rules, the numbers of the calls, and the assembler. A listed call fails with an error number
instead of killing: the program sees a PermissionError where it asked for too much. What the kernel
learnt after this was written does not exist (ENOSYS); a foreign architecture's calls kill the process.
Not here: loading the filter (`bubblewrap.py`, `confine.py`).

Source: Linux's include/uapi/linux/{seccomp,filter,audit}.h and the two tables of system calls.
"""

import errno
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gemma4_jax.errors import UserError

#: AUDIT_ARCH_* of the machines that are known, by the name that `platform.machine` gives them.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # on x86_64, numbers with this bit are a second set of calls
_LAST_KNOWN = 449  # futex_waitv, Linux 5.16; from 424 on, both machines count alike

#: Stands for the number of the process, which nobody knows before it runs.
OWN_PID = int.from_bytes(b"PID!", "little")

_CLONE_THREAD = 0x10000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # put words in the terminal's mouth
_OPEN_FOR_WRITING = 0o1 | 0o2 | 0o100 | 0o1000 | 0o2000  # WRONLY RDWR CREAT TRUNC APPEND

# Name: (x86_64, aarch64); None where the machine has no such call.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    **{"fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435)},
    **{"execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "kcmp": (312, 272)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271)},
    **{"process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434)},
    **{"pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424)},
    **{"perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282)},
    **{"keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218)},
    **{"mount": (165, 40), "umount2": (166, 39), "move_mount": (429, 429), "open_tree": (428, 428)},
    **{"fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433)},
    **{"mount_setattr": (442, 442), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"setns": (308, 268), "unshare": (272, 97), "kexec_load": (246, 104)},
    **{"kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273)},
    **{"delete_module": (176, 106), "reboot": (169, 142), "swapon": (167, 224)},
    **{"swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443)},
    **{"syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112)},
    **{"clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161)},
    **{"setdomainname": (171, 162), "iopl": (172, None), "ioperm": (173, None)},
    **{"modify_ldt": (154, None), "uselib": (134, None), "personality": (135, 92)},
    **{"lookup_dcookie": (212, 18), "nfsservctl": (180, 42), "vhangup": (153, 58)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265)},
    **{"fanotify_init": (300, 262), "fanotify_mark": (301, 263), "io_uring_setup": (425, 425)},
    **{"io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0)},
    **{"memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194)},
    **{"shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180)},
    **{"move_pages": (279, 239), "migrate_pages": (256, 238), "socket": (41, 198)},
    **{"ioctl": (16, 29), "prlimit64": (302, 261), "kill": (62, 129), "tkill": (200, 130)},
    **{"tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240)},
    **{"setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122)},
    **{"sched_setscheduler": (144, 119), "sched_setparam": (142, 118)},
    **{"sched_setattr": (314, 274), "open": (2, None), "openat": (257, 56), "openat2": (437, 437)},
    **{"creat": (85, None), "truncate": (76, 45), "unlink": (87, None), "unlinkat": (263, 35)},
    **{"rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, None)},
    **{"mkdirat": (258, 34), "rmdir": (84, None), "link": (86, None), "linkat": (265, 37)},
    **{"symlink": (88, None), "symlinkat": (266, 36), "mknod": (133, None), "mknodat": (259, 33)},
    **{"chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None)},
    **{"fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None)},
    **{"utimes": (235, None), "utimensat": (280, 88), "futimesat": (261, None)},
    **{"setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7)},
    **{"removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16)},
}

_OTHER_PROCESSES = (
    *("ptrace", "kcmp", "process_vm_readv", "process_vm_writev", "process_madvise"),
    *("process_mrelease", "pidfd_open", "pidfd_getfd", "pidfd_send_signal"),
)
_KERNEL = (
    *("perf_event_open", "bpf", "userfaultfd", "keyctl", "add_key", "request_key"),
    *("kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module"),
    *("reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog"),
    *("settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "sethostname"),
    *("setdomainname", "iopl", "ioperm", "modify_ldt", "uselib", "personality", "vhangup"),
    *("lookup_dcookie", "nfsservctl", "io_uring_setup", "io_uring_enter", "io_uring_register"),
    *("io_setup", "move_pages", "migrate_pages"),
)
_NAMESPACES = (
    *("mount", "umount2", "move_mount", "open_tree", "fsopen", "fsconfig", "fsmount", "fspick"),
    *("mount_setattr", "pivot_root", "chroot", "setns", "unshare", "name_to_handle_at"),
    *("open_by_handle_at", "fanotify_init", "fanotify_mark"),
)
# Memory that RLIMIT_AS does not see while it is not mapped.
_HIDDEN_MEMORY = ("memfd_create", "memfd_secret", "shmget", "shmat", "semget", "msgget", "mq_open")
_CHANGES_FILES = (
    *("creat", "truncate", "unlink", "unlinkat", "rename", "renameat", "renameat2", "mkdir"),
    *("mkdirat", "rmdir", "link", "linkat", "symlink", "symlinkat", "mknod", "mknodat", "chmod"),
    *("fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "utime", "utimes"),
    *("utimensat", "futimesat", "setxattr", "lsetxattr", "fsetxattr", "removexattr"),
    *("lremovexattr", "fremovexattr"),
)
_CHANGES_SCHEDULING = (
    *("setpriority", "ioprio_set", "sched_setaffinity", "sched_setscheduler"),
    *("sched_setparam", "sched_setattr"),
)


@dataclass(frozen=True)
class Rule:
    """A call that fails with `error`; if `test` is given, only where argument `argument` passes it.

    test: "any" bit of `value` is set, "none" is, "is" or "is not" equal to it. The low 32 bits are
    looked at: that is all of an int, which is what these arguments are.
    """

    call: str
    error: int
    test: Literal["any", "none", "is", "is not"] | None = None
    argument: int = 0
    value: int = 0


def rules(weak: bool = False) -> list[Rule]:
    """What is refused, in the order of looking. weak: as for `filter_bytes`."""
    # EAGAIN is what a machine without room for another process says.
    refused = [Rule(call, errno.EAGAIN) for call in ("fork", "vfork")]
    refused += [Rule("clone", errno.EAGAIN, "none", 0, _CLONE_THREAD)]
    refused += [Rule("clone3", errno.ENOSYS)]  # its flags are in memory; libc falls back to clone
    refused += [Rule("socket", errno.EPERM)]  # socketpair, which event loops need, reaches nobody
    for call in (*_OTHER_PROCESSES, *_KERNEL, *_NAMESPACES, *_HIDDEN_MEMORY):
        refused.append(Rule(call, errno.EPERM))
    for request in (_TIOCSTI, _TIOCLINUX):
        refused.append(Rule("ioctl", errno.EPERM, "is", 1, request))
    if not weak:
        return refused
    refused += [Rule(call, errno.EPERM) for call in ("execve", "execveat", *_CHANGES_SCHEDULING)]
    refused += [Rule(call, errno.EROFS) for call in _CHANGES_FILES]
    refused += [Rule("open", errno.EROFS, "any", 1, _OPEN_FOR_WRITING)]
    refused += [Rule("openat", errno.EROFS, "any", 2, _OPEN_FOR_WRITING)]
    refused += [Rule("openat2", errno.ENOSYS)]  # its flags are in memory too
    # Signals and limits only for itself; abort() is tgkill.
    for call in ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
        refused.append(Rule(call, errno.EPERM, "is not", 0, OWN_PID))
    refused += [Rule("prlimit64", errno.EPERM, "is not", 0, 0)]
    return refused


def filter_bytes(weak: bool = False, machine: str | None = None) -> bytes:
    """The filter as the kernel takes it.

    weak: for a process without namespaces of its own: no file is changed, no other process signalled,
    nothing executed; the process replaces `OWN_PID` by its number before it loads the filter.
    machine: as `platform.machine` names it, else this one.
    Raises UserError for a machine whose calls are not known.
    """
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"no seccomp filter for {machine!r} (known: {known}); run programs on one")
    column = list(ARCHITECTURES).index(machine)
    code = [
        _load(4),
        _instruction(_EQUAL, 1, 0, ARCHITECTURES[machine]),
        _return(_KILL),
        _load(0),
    ]
    if machine == "x86_64":
        code += [_skip_unless(_AT_LEAST, _X32, 1), _return(_ERROR | errno.ENOSYS)]
    code += [_skip_unless(_AT_LEAST, _LAST_KNOWN + 1, 1), _return(_ERROR | errno.ENOSYS)]
    for rule in rules(weak):
        number = NUMBERS[rule.call][column]
        if number is not None:
            code += _compiled(rule, number)
    code.append(_return(_ALLOW))
    return b"".join(code)


_LOAD, _EQUAL, _AT_LEAST, _ANY, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def _instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _load(offset: int) -> bytes:
    """Of struct seccomp_data: 0 the call's number, 4 the architecture, 16 + 8 i argument i."""
    return _instruction(_LOAD, 0, 0, offset)


def _return(action: int) -> bytes:
    return _instruction(_RETURN, 0, 0, action)


def _skip_unless(test: int, value: int, length: int) -> bytes:
    return _instruction(test, 0, length, value)


def _compiled(rule: Rule, number: int) -> Sequence[bytes]:
    """The rule's instructions. The call's number is loaded before them, and again after them."""
    refuse = _return(_ERROR | rule.error)
    if rule.test is None:
        return [_skip_unless(_EQUAL, number, 1), refuse]
    test = _ANY if rule.test in ("any", "none") else _EQUAL
    passes = (0, 1) if rule.test in ("any", "is") else (1, 0)
    return [
        _skip_unless(_EQUAL, number, 4),
        _load(16 + 8 * rule.argument),
        _instruction(test, *passes, rule.value),
        refuse,
        _load(0),
    ]
