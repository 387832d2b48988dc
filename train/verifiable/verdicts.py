"""What a verifier says of every answer, one line each, written as it comes.

Here: which verifier a prompt names, and judging many answers at once. Not here: the verifiers themselves
(gemma4_jax/verify).
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.verifiable import VerifyConfig
from gemma4_jax.errors import UserError, unknown
from gemma4_jax.verify.answers import to_number
from gemma4_jax.verify.judgement import Judgement, Verifier, exact_number
from gemma4_jax.verify.own import python_file
from gemma4_jax.verify.pool import Pool
from gemma4_jax.verify.programs import input_output, unit_tests
from gemma4_jax.verify.sandbox import Limits, Sandbox
from gemma4_jax.verify.structured import json_schema, tool_calls, violation
from train.verifiable.files import Key, Lines
from train.verifiable.pace import Pace

if TYPE_CHECKING:
    from train.verifiable.answers import Asking
    from train.verifiable.prompts import Prompt

#: What a prompt's `verifier` must have and may have beside its kind; "python" may have anything.
COLUMNS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "number": (("answer",), ()),
    "json_schema": (("schema",), ()),
    "tool_calls": ((), ("calls",)),
    "unit_tests": (("tests", "functions"), ("preamble",)),
    "input_output": (("cases",), ()),
    "python": (("file",), ()),
}
_PROGRAMS = ("unit_tests", "input_output", "python")

Verify = Callable[[str, str], Judgement]


@dataclass(frozen=True)
class Verifiers:
    """The verifiers of a file of prompts. folder: where files that rows name are."""

    config: VerifyConfig
    folder: Path

    @property
    def sandbox(self) -> Sandbox:
        """Where programs run."""
        limits = Limits(seconds=self.config.seconds)
        return Sandbox(limits=limits, isolation=self.config.isolation)

    def of(self, row: Mapping[str, Any]) -> Verify:
        """What judges (output, prompt) for this row; UserError that names the field that is wrong."""
        given = row["verifier"]
        if not isinstance(given, Mapping) or "kind" not in given:
            raise UserError(f"verifier must be an object with a kind, got {given!r:.60}")
        kind = given["kind"]
        if kind not in COLUMNS:
            raise unknown("verifier.kind", kind, COLUMNS)
        needed, allowed = COLUMNS[kind]
        for name in needed:
            if name not in given:
                raise UserError(f"verifier.{name} is missing; {kind} needs {' and '.join(needed)}")
        for name in given:
            if kind != "python" and name not in ("kind", *needed, *allowed):
                raise unknown(f"field of a {kind} verifier", name, ("kind", *needed, *allowed))
        verifier = self._verifier(kind, given, row)
        columns = {**row, **given}
        return lambda output, prompt: verifier(output, columns, prompt)

    def _verifier(self, kind: str, given: Mapping[str, Any], row: Mapping[str, Any]) -> Verifier:
        match kind:
            case "number":
                to_number(given["answer"])
                return exact_number
            case "json_schema":
                violation(None, given["schema"])
                return json_schema
            case "tool_calls":
                if not row.get("tools"):
                    raise UserError("a tool_calls verifier needs the row's tools")
                return tool_calls
            case "unit_tests":
                return unit_tests(self.sandbox)
            case "input_output":
                return input_output(self.sandbox)
        return python_file(self.folder / str(given["file"]), self.sandbox)

    def check(self, kinds: set[str]) -> None:
        """UserError now, not after hours of answers, if verifiers run programs and there is no sandbox."""
        if kinds.intersection(_PROGRAMS):
            self.sandbox.run("")


def judge(
    prompts: "Sequence[Prompt]",
    how: "Asking",
    answers: Mapping[Key, Mapping[str, Any]],
    lines: Lines,
    workers: int,
    what: str,
) -> None:
    """Judge every answer that has no verdict in `lines` yet, `workers` at a time.

    how: prompts were asked. A verdict is {"prompt", "sample", "right", "score", "reason"}; right and score are
    None where the verifier could not tell.
    """
    missing = [row for key, row in answers.items() if key not in lines.rows and "error" not in row]
    if not missing:
        return
    by_id = {prompt.id: prompt for prompt in prompts}
    done = len(answers) - len(missing)
    pace = Pace(what, len(answers), done)

    def verdict(row: Mapping[str, Any]) -> dict[str, Any]:
        prompt = by_id[row["prompt"]]
        said: dict[str, Any] = {"prompt": prompt.id, "sample": row["sample"]}
        try:
            found = prompt.verify(row["text"], how.text(prompt))
        except UserError as error:
            return {**said, "right": None, "score": None, "reason": str(error)}
        return {**said, "right": found.right, "score": found.score, "reason": found.note}

    with Pool(workers) as pool:
        futures = _ahead((pool.submit(verdict, row) for row in missing), 4 * workers)
        for future in futures:
            lines.put(future.result())
            done += 1
            pace.at(done)


def _ahead(futures: Iterator[Future[Any]], count: int) -> Iterator[Future[Any]]:
    """The same in order, each asked for when `count` before it are under way."""
    line: deque[Future[Any]] = deque()
    for future in futures:
        line.append(future)
        if len(line) > count:
            yield line.popleft()
    yield from line
