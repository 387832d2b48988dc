"""Answers with programs, written for the tests: what models do, what cheats do, what the references trip
over."""

import itertools
import random
from typing import Any

# name, inputs, outputs, and how to compute the answer from the words or lines of the input
STDIN_PROBLEMS: dict[str, dict[str, Any]] = {
    "sum": {
        "tests": [("3\n1 2 3\n", "6\n"), ("1\n5\n", "5"), ("4\n1 1 1 1\n", "4\n")],
        "from_lines": "print(sum(map(int, lines[1].split())))",
    },
    "lines": {
        "tests": [("2\nab\ncd\n", "ba\ndc\n"), ("3\nx\n\nyz\n", "x\n\nzy\n"), ("1\nq\n", "q\n")],
        "from_lines": "print('\\n'.join(line[::-1] for line in lines[1:int(lines[0]) + 1]))",
    },
    "half": {
        "tests": [("1\n", "0.5\n"), ("3 4\n", "1.5 2\n"), ("10 2 7\n", "5.0 1.00 3.5\n")],
        "from_lines": "print(*[int(word) / 2 for word in lines[0].split()])",
    },
}
READERS = {
    "input": "lines = []\ntry:\n    while True:\n        lines.append(input())\nexcept EOFError:\n    pass",
    "input any": "lines = []\ntry:\n    while True:\n        lines.append(input())\nexcept Exception:\n    pass",
    "input bare": "lines = [input()]\nif len(lines[0].split()) == 1 and lines[0].isdigit():\n"
    "    try:\n        for _ in range(int(lines[0])):\n            lines.append(input())\n    except:\n  "
    "      pass",
    "read": "import sys\nlines = sys.stdin.read().split('\\n')",
    "readlines": "import sys\nlines = [line.rstrip('\\n') for line in sys.stdin.readlines()]",
    "readline": "import sys\nlines = [sys.stdin.readline().strip() for _ in range(2)]",
    "readline name": "import sys\ninput = sys.stdin.readline\nlines = [input().strip()]\n"
    "lines += [input().strip() for _ in range(int(lines[0].split()[0]))] if ' ' not in lines[0] else []",
    "buffer read": "import sys\nlines = sys.stdin.buffer.read().decode().split('\\n')",
    "buffer readline": "import sys\nread = sys.stdin.buffer.readline\nlines = [read().decode().strip() for _ in range(3)]",
    "buffer readlines": "import sys\nlines = [l.decode().strip() for l in sys.stdin.buffer.readlines()]",
    "for line": "import sys\nlines = [line.rstrip('\\n') for line in sys.stdin]",
    "open 0": "lines = open(0).read().split('\\n')",
    "os read": "import os\nlines = os.read(0, 1 << 16).decode().split('\\n')",
    "fileinput": "import fileinput\nlines = [line.rstrip('\\n') for line in fileinput.input()]",
    "name": "from sys import stdin\nlines = stdin.read().split('\\n')",
    "name readline": "from sys import stdin\nlines = [stdin.readline().strip() for _ in range(2)]",
    "io": (
        "import io, os\nlines = io.BytesIO(os.read(0, os.fstat(0).st_size or "
        "9999)).read().decode().split('\\n')"
    ),
    "stdin file": "lines = open('/dev/stdin').read().split('\\n')",
}
FRAMES = {
    "plain": "{read}\n{answer}",
    "main": "def main():\n{read4}\n{answer4}\n\nmain()",
    "guarded": "def main():\n{read4}\n{answer4}\n\nif __name__ == '__main__':\n    main()",
    "guarded double": 'def main():\n{read4}\n{answer4}\n\nif __name__ == "__main__":\n    main()',
    "exit": "{read}\n{answer}\nexit()",
    "function": "def solve(lines):\n{answer4}\n\n{read}\nsolve(lines)",
}
# Whole programs, by problem "sum" if not said otherwise.
_SUM = "n = int(input())\nnumbers = list(map(int, input().split()))\n"
WHOLE = {
    "quit": _SUM + "print(sum(numbers))\nquit()",
    "sys exit": "import sys\n" + _SUM + "print(sum(numbers))\nsys.exit(0)",
    "sys exit 1": "import sys\n" + _SUM + "print(sum(numbers))\nsys.exit(1)",
    "exit early": "exit()\n" + _SUM + "print(sum(numbers))",
    "system exit": _SUM + "print(sum(numbers))\nraise SystemExit",
    "os exit": "import os, sys\n" + _SUM + "print(sum(numbers))\nsys.stdout.flush()\nos._exit(0)",
    "error after": _SUM + "print(sum(numbers))\n1 / 0",
    "keyboard": _SUM + "print(sum(numbers))\nraise KeyboardInterrupt",
    "stdout write": "import sys\n" + _SUM + "sys.stdout.write(str(sum(numbers)) + '\\n')",
    "stdout buffer": "import sys\n" + _SUM + "sys.stdout.buffer.write(str(sum(numbers)).encode())",
    "stdout name": "from sys import stdout\n" + _SUM + "stdout.write(str(sum(numbers)))",
    "stdout close": "import sys\n" + _SUM + "print(sum(numbers))\nsys.stdout.close()",
    "os write": "import os\n" + _SUM + "os.write(1, str(sum(numbers)).encode())",
    "stderr": "import sys\n" + _SUM + "print('hm', file=sys.stderr)\nprint(sum(numbers), flush=True)",
    "no import": _SUM + "print(int(fsum(numbers)))",
    "no import counter": _SUM + "print(sum(k * v for k, v in Counter(numbers).items()))",
    "shadowed pow": _SUM + "print(sum(numbers) * pow(7, 2, 3))",
    "global": "total = 0\ndef add(x):\n    global total\n    total += x\n"
    + _SUM + "for x in numbers: add(x)\nprint(total)",
    "global made": "def start():\n    global total\n    total = 0\n"
    + _SUM + "start()\nfor x in numbers: total += x\nprint(total)",
    "global made in": "def start():\n    global total\n    total = 0\ndef add(x):\n    global total\n    total += x\n"
    + _SUM + "start()\nfor x in numbers: add(x)\nprint(total)",
    "class": "class Adder:\n    start = 0\n    def all(self, xs): return self.start + sum(xs)\n"
    + _SUM + "print(Adder().all(numbers))",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    + _SUM + "print(sum(P(x).x for x in numbers))",
    "recursion": "def add(xs, i):\n    return 0 if i == len(xs) else xs[i] + add(xs, i + 1)\n"
    + _SUM + "print(add(numbers, 0))",
    "deep": "import sys\nsys.setrecursionlimit(10**6)\ndef down(k): return 0 if k == 0 else down(k - 1)\n"
    + _SUM + "down(20000)\nprint(sum(numbers))",
    "thread": "import threading\ndef main():\n    n = int(input())\n    print(sum(map(int, input().split())))\n"
    "t = threading.Thread(target=main)\nt.start()\nt.join()",
    "thread stack": "import sys, threading\nthreading.stack_size(1 << 26)\ndef main():\n    n = int(input())\n"
    "    print(sum(map(int, input().split())))\nt = threading.Thread(target=main)\nt.start()\nt.join()",
    "resource": "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (1 << 24, 1 << 24))\n"
    + _SUM + "print(sum(numbers))",
    "getcwd": "import os\nos.getcwd()\n" + _SUM + "print(sum(numbers))",
    "subprocess": "import subprocess\nsubprocess.Popen\n" + _SUM + "print(sum(numbers))",
    "environ": "import os\n" + _SUM + "print(sum(numbers) if os.environ.get('OMP_NUM_THREADS') == '1' else -1)",
    "name": _SUM + "print(sum(numbers) if __name__ == 'tmp_sol' else 0)",
    "import inside": "def f():\n    from math import fsum\n    return fsum\n" + _SUM + "print(int(f()(numbers)))",
    "star inside": "from math import *\n" + _SUM + "print(int(floor(sum(numbers))))",
    "future": "from __future__ import annotations\n" + _SUM + "print(sum(numbers))",
    "docstring": '"""Adds."""\n' + _SUM + "print(sum(numbers))",
    "comment only": "# nothing here",
    "only imports": "import math",
    "syntax": "print(sum(",
    "indent": "  x = 1\n print(x)",
    "name error": _SUM + "print(total)",
    "return": _SUM + "print(sum(numbers))\nreturn",
    "yield": _SUM + "print(sum(numbers))\nyield 1",
    "await": _SUM + "print(sum(numbers))\nawait x",
    "walrus": "print(sum(map(int, (input(), line := input())[1].split())))",
    "spaces": _SUM + "print('  ', sum(numbers), '   \\n\\n')",
    "float answer": _SUM + "print(float(sum(numbers)))",
    "scientific": _SUM + "print(f'{sum(numbers):e}')",
    "underscore": _SUM + "print(str(sum(numbers)) + '_0' if sum(numbers) > 9 else sum(numbers))",
    "plus": _SUM + "print('+%d' % sum(numbers))",
    "leading zeros": _SUM + "print('%05d' % sum(numbers))",
    "nan": _SUM + "print('nan')",
    "wide digits": _SUM + "print(''.join(chr(0xFF10 + int(d)) for d in str(sum(numbers))))",
    "extra line": _SUM + "print(sum(numbers))\nprint()\nprint(0)",
    "prompted": "n = int(input('n? '))\nprint(sum(map(int, input('numbers? ').split())))",
    "nothing": _SUM,
    "first only": _SUM + "print(6)",
    "second wrong": _SUM + "print(6 if len(numbers) == 3 else -1)",
    "third error": _SUM + "print(sum(numbers) if len(numbers) < 4 else 1 / 0)",
    "state by module": "import string\n" + _SUM
    + "string.seen = getattr(string, 'seen', 0) + 1\nprint(sum(numbers) if string.seen == 1 else 0)",
    "state by default": "def f(x, seen=[]):\n    seen.append(x)\n    return sum(seen)\n"
    + _SUM + "print(f(sum(numbers)))",
    "slow": "import time\n" + _SUM + "time.sleep(60)\nprint(sum(numbers))",
    "busy": _SUM + "while True: pass",
    "busy caught": _SUM + "try:\n    while True: pass\nexcept:\n    print(sum(numbers))",
    "busy caught twice": _SUM + "try:\n    while True: pass\nexcept Exception as e:\n    raise ValueError(repr(e))",
    "late name": "class TimeoutException(Exception): pass\nraise TimeoutException()",
    "alarm off": "import signal\nsignal.alarm(0)\n" + _SUM + "print(sum(numbers))",
    "module class": "class Solution:\n    pass\n" + _SUM + "print(sum(numbers))",
    "module class word": "# class Solution\n" + _SUM + "print(sum(numbers))",
    "input twice": "a = input()\nb = input()\nc = input()\nprint(sum(map(int, b.split())))",
    "read again": "import sys\nsys.stdin.read()\nprint(sum(map(int, sys.stdin.read().split()[1:])))",
    "readline eof": "import sys\nsys.stdin.readline(); line = sys.stdin.readline()\nwhile sys.stdin.readline(): pass\n"
    "print(sum(map(int, line.split())))",
    "isatty": "import sys\nsys.stdin.isatty()\n" + _SUM + "print(sum(numbers))",
    "fileno": "import sys\nsys.stdin.fileno()\n" + _SUM + "print(sum(numbers))",
    "stdin closed": "import sys\n" + _SUM + "sys.stdin.close()\nprint(sum(numbers))",
    "help": "help\n" + _SUM + "print(sum(numbers))",
    "builtins open": "import builtins\nlines = builtins.open(0).read().split()\nprint(sum(map(int, lines[1:])))",
    "walks": "import sys\nframe = sys._getframe()\nwhile frame and 'nothing' not in frame.f_locals:\n"
    "    frame = frame.f_back\nprint(frame and frame.f_locals)",
}  # fmt: skip

CALL_PROBLEMS: dict[str, dict[str, Any]] = {
    "twoSum": {
        "tests": [
            ("[1, 2, 3]\n4", "[0, 2]"),
            ("[5, 5]\n10", "[0, 1]"),
            ("[0, 1, 9]\n10", "[1, 2]"),
        ],
        "bodies": {
            "list": "return [(i, j) for i in range(len(a)) for j in range(i) if a[i] + a[j] == k][0][::-1]",
            "real list": "return next([j, i] for i in range(len(a)) for j in range(i) if a[i] + a[j] == k)",
            "floats": "return [float(x) for x in next((j, i) for i in range(len(a)) for j in range(i) "
            "if a[i] + a[j] == k)]",
            "set": "return set(next([j, i] for i in range(len(a)) for j in range(i) if a[i] + a[j] == k))",
            "generator": "return (x for x in [0, 1])",
            "deque": (
                "return deque(next([j, i] for i in range(len(a)) for j in range(i) if a[i] + a[j] "
                "== k))"
            ),
            "range": "return range(2)",
            "bools": "return [False, True]",
            "sorted": "a.sort()\n        return [0, len(a) - 1]",
            "string": "return '[0, 2]'",
            "none": "pass",
            "raises": "raise ValueError('no')",
            "exits": "exit()",
            "timeout": "while True: pass",
            "prints": "print([0, 2])",
            "namedtuple": "return namedtuple('P', 'x y')(0, len(a) - 1) if a[0] != 0 else (1, 2)",
        },
        "arguments": "a: List[int], k: int",
    },
    "score": {
        "tests": [('"abc"', "3"), ('"a\\nb"', "3.0"), ('""', "0")],
        "bodies": {
            "len": "return len(a)",
            "float": "return float(len(a))",
            "fraction": "from fractions import Fraction\n        return Fraction(len(a))",
            "decimal": "from decimal import Decimal\n        return Decimal(len(a))",
            "bool": "return bool(a)",
            "string": "return str(len(a))",
            "near": "return len(a) + 1e-9",
            "list": "return [len(a)]",
            "tuple": "return (len(a),)",
            "complex": "return complex(len(a), 0)",
            "state": "self.n = getattr(self, 'n', 0) + 1\n        return len(a) if self.n == 1 else -1",
            "cached": "return f(a)",
            "int enum": "import enum\n        return enum.IntEnum('E', [('x', len(a))]).x",
            "subclass": "class N(int): pass\n        return N(len(a))",
            "deep": "def d(k): return 0 if k == 0 else d(k - 1)\n        return d(3000) + len(a)",
        },
        "arguments": "a: str",
    },
    "group": {
        "tests": [
            ('["x", "y", "x"]', '{"x": 2, "y": 1}'),
            ("[]", "{}"),
            ('["z"]', '{"z": 1}'),
        ],
        "bodies": {
            "dict": "return {w: a.count(w) for w in a}",
            "counter": "return Counter(a)",
            "default": "d = defaultdict(int)\n        for w in a: d[w] += 1\n        return d",
            "ordered": "return OrderedDict((w, a.count(w)) for w in sorted(set(a)))",
            "items": "return list(Counter(a).items())",
            "pairs": "return [[w, a.count(w)] for w in a]",
            "mapping": "import types\n        return types.MappingProxyType({w: a.count(w) for w in a})",
            "always equal": "class A:\n            def __eq__(self, o): return True\n        return A()",
            "mutates": "a.append('more')\n        return Counter(a[:-1])",
            "floats": "return {w: float(a.count(w)) for w in a}",
            "nested": "return {w: (a.count(w),) for w in a}",
            "numbers": "return {i: 1 for i in range(len(a))}",
        },
        "arguments": "a: List[str]",
    },
}
CALL_FRAMES = {
    "Solution": "class Solution:\n    def {name}(self, {arguments}):\n        {body}\n",
    "imports": (
        "from typing import List\n\nclass Solution:\n    def {name}(self, {arguments}) -> "
        "object:\n        {body}\n"
    ),
    "function": "def {name}({plain}):\n        {body}\n",
    "wrong name": "class Solution:\n    def other(self, {arguments}):\n        {body}\n",
    "helper": (
        "@lru_cache(None)\ndef f(s): return len(s)\n\nclass Solution:\n    def {name}(self, "
        "{arguments}):\n        {body}\n"
    ),
    "needs self": "class Solution:\n    def __init__(self, x): self.x = x\n    def {name}(self, {arguments}):\n"
    "        {body}\n",
}


def lcb_candidates() -> list[dict[str, Any]]:
    """Programs with the tests they face: {name, function or None, inputs, outputs, code}."""
    found = []

    def add(name: str, tests: Any, code: str, function: str | None = None) -> None:
        inputs, outputs = map(list, zip(*tests, strict=True))
        found.append(
            {"name": name, "function": function, "inputs": inputs, "outputs": outputs, "code": code}
        )

    for (problem, p), (reader, read), (frame, text) in itertools.product(
        STDIN_PROBLEMS.items(), READERS.items(), FRAMES.items()
    ):
        if frame != "plain" and hash_of(problem, reader, frame) % 4:
            continue  # a quarter of the product, and every plain one
        answer = p["from_lines"]
        code = text.format(
            read=read, answer=answer, read4=_indented(read), answer4=_indented(answer)
        )
        add(f"{problem}, {reader}, {frame}", p["tests"], code)
    for name, code in WHOLE.items():
        add(f"sum, {name}", STDIN_PROBLEMS["sum"]["tests"], code)
    for name, p in CALL_PROBLEMS.items():
        plain = p["arguments"].replace(": List[int]", "").replace(": int", "")
        plain = plain.replace(": List[str]", "").replace(": str", "")
        for number, (label, body) in enumerate(p["bodies"].items()):
            for frame, text in CALL_FRAMES.items():
                if frame not in ("Solution", "function") and number % 3:
                    continue
                code = text.format(name=name, arguments=p["arguments"], plain=plain, body=body)
                add(f"{name}, {label}, {frame}", p["tests"], code, name)
    return found


def fenced_answers(count: int = 220) -> list[str]:
    """Answers with blocks of code in every order and state, the same every time."""
    rng = random.Random(4)
    parts = [
        "Here is the solution:", "```python", "```", "```py", "  ```", "print(1)", "x = `a`", "Use ```x``` here.",
        "", "    return 2", "```python3 ", "~~~", "Thanks ``` bye", "```cpp\nint main() {}\n```",
        "```python\nprint(input())\n```", "```\nprint(3)\n```", "\r", "def f():\n    pass",
    ]  # fmt: skip
    return ["\n".join(rng.choices(parts, k=rng.randint(0, 9))) for _ in range(count)]


def hash_of(*words: str) -> int:
    """The same in every run, unlike hash()."""
    return sum(ord(letter) * (i + 1) for i, letter in enumerate("/".join(words)))


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.split("\n"))
