"""Programs that attack the sandbox they run in, and one way to run them all.

    python -m tests.verify.attacks bubblewrap       # {"attack": {"status", "stdout", ...}, ...} on stdout

It runs as a process of its own, so that it can be another user's, with the secret in its environment, a
file, a process and a port that the programs go for. Standard library and `gemma4_jax.verify` alone: the
other user may have nothing else. Where containment fails they do no damage that would be missed: they
delete what is theirs and send no signal to strangers.
"""

import ctypes
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from gemma4_jax.verify.sandbox import Limits, Sandbox
from gemma4_jax.verify.seccomp import ARCHITECTURES, NUMBERS

SECRET = "hunter2-is-the-token"
LIMITS = Limits(seconds=30.0, memory_bytes=192 << 20)
SHORT = replace(LIMITS, seconds=0.5)  # for what has no end

# SECRET_FILE, VICTIM (a process), PORT (on the host's loopback) and NR_call are filled in.
_PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    return "done" if libc.syscall(number, *arguments) >= 0 else os.strerror(ctypes.get_errno())
def tried(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
        return "done"
    except (OSError, ValueError, RuntimeError) as error:
        return type(error).__name__
"""

PROGRAMS = {
    "endless loop": "while True: pass",
    "sleep, deaf to signals": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: time.sleep(60)
""",
    "closed outputs": "import os\nos.close(1); os.close(2)\nwhile True: pass",
    "endless output": "while True: print('x' * 1000)",
    "endless errors": "import sys\nwhile True: print('x' * 1000, file=sys.stderr)",
    "memory at once": "bytearray(8 << 30)",
    "memory in pieces": "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
    "hidden memory": _PRELUDE
    + """
print(tried(os.memfd_create, "x"), libc.shmget(0, 1 << 20, 0o1600) >= 0, tried(open, "/dev/shm/x", "w"))
""",
    "forks": """
import os
made = 0
for _ in range(100):
    try:
        if os.fork() == 0: os._exit(0)
        made += 1
    except OSError: pass
print(made)
""",
    "daemon": """
import os, subprocess, multiprocessing, time
for start in (
    lambda: os.fork(), lambda: subprocess.Popen(["/bin/sleep", "5"]), lambda: os.system("true") and 1 / 0,
    lambda: os.posix_spawn("/bin/true", ["true"], {}), lambda: multiprocessing.Process().start(),
):
    try: print("started", start())
    except BaseException as error: print(type(error).__name__)
""",
    "threads": """
import _thread, os
_thread.stack_size(32768)
held, made = _thread.allocate_lock(), 0
held.acquire()
try:
    while made < 20000: _thread.start_new_thread(held.acquire, ()); made += 1
except (RuntimeError, MemoryError): pass
os.write(1, str(made).encode()); os._exit(0)
""",
    "network": _PRELUDE
    + """
import socket
def connect(family, kind, address):
    with socket.socket(family, kind) as s:
        s.settimeout(1); s.connect(address); s.send(b"x")
print(tried(connect, socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", PORT)))
print(tried(connect, socket.AF_INET6, socket.SOCK_STREAM, ("::1", PORT)))
print(tried(connect, socket.AF_INET, socket.SOCK_DGRAM, ("192.0.2.1", 53)))
print(tried(connect, socket.AF_UNIX, socket.SOCK_STREAM, "\\0sandbox-test-PORT"))
print(tried(socket.create_server, ("0.0.0.0", 0)))
""",
    "writing elsewhere": _PRELUDE
    + """
places = "/ /usr /usr/lib /bin /etc /tmp /var/tmp /home /root /dev /proc/self /sys".split()
for place in [*places, os.path.dirname(SECRET_FILE), sys.prefix]:
    print(tried(open, place + "/planted", "w"))
for act in (os.unlink, os.rmdir, lambda p: os.truncate(p, 0), lambda p: os.chmod(p, 0o777),
            lambda p: os.rename(p, p + ".moved"), lambda p: open(p, "a"), lambda p: os.utime(p)):
    print(tried(act, SECRET_FILE))
print(tried(open, os.__file__, "a"), tried(os.utime, os.__file__))
""",
    "filling the disk": """
import os
total = 0
for number in range(8):
    try:
        with open(f"file{number}", "wb", buffering=0) as file:
            while True: total += file.write(bytes(1 << 20))
    except OSError: pass
print(total)
""",
    "many files": "n = 0\nwhile True: open(f'file{n}', 'w').close(); n += 1",
    "kill everything": _PRELUDE
    + """
print(tried(os.kill, VICTIM, 9), tried(os.killpg, VICTIM, 9), tried(os.kill, -1, 0))
if os.getppid() > 1: print(tried(os.kill, os.getppid(), 9))
""",
    "other processes": _PRELUDE
    + """
import resource
print(call(NR_ptrace, 16, VICTIM, 0, 0), call(NR_pidfd_open, VICTIM, 0))
print(call(NR_process_vm_readv, VICTIM, 0, 0, 0, 0, 0))
print(tried(resource.prlimit, VICTIM, resource.RLIMIT_NOFILE, (0, 0)))
print(tried(open, f"/proc/{VICTIM}/mem", "rb"), tried(open, f"/proc/{os.getppid()}/mem", "rb"))
""",
    "new namespaces": _PRELUDE
    + """
print(call(NR_unshare, 0x10000000), call(NR_unshare, 0x20000), call(NR_unshare, 0x40000000))
print(call(NR_mount, b"none", b"/w", b"tmpfs", 0, None), call(NR_chroot, b"/usr"))
print(call(NR_clone, 0x10000011, 0, 0, 0, 0))
""",
    "the kernel": _PRELUDE
    + """
print(call(NR_io_uring_setup, 8, ctypes.create_string_buffer(120)))  # io_uring_setup
print(call(NR_bpf, 0, ctypes.create_string_buffer(128), 128))  # bpf
print(call(NR_perf_event_open, ctypes.create_string_buffer(128), 0, -1, -1, 0))  # perf_event_open
print(call(NR_add_key, b"user", b"x", b"y", 1, -3), call(NR_userfaultfd, 0), call(NR_reboot, 0, 0, 0, None))
print(call(0x40000000 + 39), call(NR_clone3, 0, 0), call(451, 0), call(30000))  # x32; clone3; the unknown
""",
    "higher limits": _PRELUDE
    + """
import resource
for kind in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
    print(tried(resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)))
""",
    "crash": "import ctypes\nctypes.string_at(0)",
    "the caller's environment": """
import glob, os
found = [str(dict(os.environ))]
paths = [f"/proc/{process}/environ" for process in (1, "self", os.getppid())]
for path in glob.glob("/proc/*/environ") + paths:
    try: found.append(open(path, "rb").read().decode())
    except OSError: pass
print("".join(found))
""",
    "the caller's files": """
import os
for path in (SECRET_FILE, "/etc/passwd", "/etc/shadow", "/proc/self/cmdline", "/proc/cpuinfo"):
    try: print(open(path).read())
    except OSError: pass
for place in (os.path.dirname(SECRET_FILE), "/home", "/root", "/proc", "/sys", "/tmp"):
    try: print(sorted(os.listdir(place)))
    except OSError: pass
""",
    "inherited descriptors": """
import os
for fd in range(3, 1024):
    try: print(fd, os.fstat(fd))
    except OSError: pass
""",
}

ENDLESS = {"endless loop", "sleep, deaf to signals", "closed outputs", "endless", "endless reply"}

#: Programs that want to pass without knowing the answers.
TESTS = "assert f(1) == 7321\nassert f(2) == 7322"
CHEATS = {
    "exit(0)": "exit(0)",
    "sys.exit in f": "import sys\ndef f(x): sys.exit(0)",
    "os._exit in f": "import os\ndef f(x): os._exit(0)",
    "at exit": "import atexit, os\natexit.register(os._exit, 0)\ndef f(x): raise SystemExit(0)",
    "equal to all": "class Y:\n    def __eq__(self, other): return True\ndef f(x): return Y()",
    "an int equal to all": """
class Y(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return Y(0)
""",
    "a thread that exits": """
import threading, os, time
def f(x):
    threading.Thread(target=os._exit, args=(0,)).start()
    time.sleep(10)
""",
    "verdict on every descriptor": """
import os
for fd in range(256):
    try: os.write(fd, b'{"passed": true}\\n')
    except OSError: pass
def f(x): return None
""",
    "verdict as a reply": """
import os
def f(x):
    for fd in range(256):
        try: os.write(fd, b'{"passed": true, "value": true, "arguments": [1]}\\n' * 9)
        except OSError: pass
    os._exit(0)
""",
    "builtins": """
import builtins, json
builtins.AssertionError = type("A", (Exception,), {})
builtins.isinstance = lambda *a: True
json.dumps = lambda *a, **k: '{"passed": true}'
def f(x): return 0
""",
    "frames": """
import re, sys
def f(x):
    at = sys._getframe()
    while at:
        for value in (*at.f_globals.values(), *at.f_locals.values(), *at.f_code.co_consts):
            if found := re.search(rf"[(]{x}[)] == (\\d+)", str(value)): return int(found[1])
        at = at.f_back
""",
    "garbage": """
import gc, re
def f(x):
    for thing in gc.get_objects():
        try:
            if found := re.search(rf"[(]{x}[)] == (\\d+)", str(thing)): return int(found[1])
        except Exception: pass
""",
    "memory": """
import re
def f(x):
    for start, end in re.findall(r"(?m)^(\\w+)-(\\w+) r", open("/proc/self/maps").read()):
        with open("/proc/self/mem", "rb") as memory:
            memory.seek(int(start, 16))
            text = memory.read(int(end, 16) - int(start, 16))
        if found := re.search(rf"f[(]{x}[)] == (\\d+)".encode(), text): return int(found[1])
""",
    "standard input": """
import os, re
def f(x):
    for fd in range(64):
        try: text = os.pread(fd, 10**6, 0)
        except OSError: continue
        if found := re.search(rf"f[(]{x}[)] == (\\d+)".encode(), text): return int(found[1])
""",
    "no such argument": "def f(x): raise AssertionError",
    "endless": "def f(x):\n    while True: pass",
    "endless reply": """
import os
def f(x):
    while True:
        for fd in range(3, 64):
            try: os.write(fd, b"x" * 65536)
            except OSError: pass
""",
    "deep reply": "def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "strange reply": """
import os
def f(x):
    for fd in range(3, 64):
        try: os.write(fd, b'{"value": {"int": 5, "set": [[]]}, "arguments": {"tuple": 3}}\\n')
        except OSError: pass
    return 1
""",
}


def main(isolation: str) -> None:
    """Run all and print what came of it."""
    sandbox = Sandbox(limits=LIMITS, isolation=isolation)  # type: ignore[arg-type]
    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as unix,
        subprocess.Popen(["/bin/sleep", "60"]) as victim,
        ThreadPoolExecutor(3) as pool,
    ):
        port = server.getsockname()[1]
        unix.bind(f"\0sandbox-test-{port}")
        unix.listen()
        secret = Path(folder, "secret")
        secret.write_text(SECRET)
        words = {"SECRET_FILE": repr(str(secret)), "VICTIM": str(victim.pid), "PORT": str(port)}

        column = list(ARCHITECTURES).index(platform.machine())

        def attack(name: str) -> dict[str, object]:
            program = re.sub(r"NR_(\w+)", lambda m: str(NUMBERS[m[1]][column]), PROGRAMS[name])
            for word, value in words.items():
                program = program.replace(word, value)
            return asdict(sandbox.run(program, limits=SHORT if name in ENDLESS else LIMITS))

        def cheat(name: str) -> dict[str, object]:
            limits = SHORT if name in ENDLESS else LIMITS
            return asdict(sandbox.test(CHEATS[name], TESTS, ["f"], limits))

        attacked = dict(zip(PROGRAMS, pool.map(attack, PROGRAMS), strict=True))
        cheated = dict(zip(CHEATS, pool.map(cheat, CHEATS), strict=True))
        honest = sandbox.test("def f(x): return 7320 + x", TESTS, ["f"])
        for each in (server, unix):
            each.settimeout(0)
        report = {
            "user": os.getuid(),
            "landlock": ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1),
            "attacks": attacked,
            "cheats": cheated,
            "honest": asdict(honest),
            "connections": [name for name, s in (("tcp", server), ("unix", unix)) if _accepts(s)],
            "victim lives": victim.poll() is None,
            "secret": secret.read_text(),
            "files": sorted(os.listdir(folder)),
        }
        victim.kill()
    print(json.dumps(report))


def _accepts(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
        return True
    except BlockingIOError:
        return False


if __name__ == "__main__":
    main(sys.argv[1])
