"""Real questions that a Python package carries, as files of the Hugging Face schemas: no download.

    pip download --no-deps lm-eval==0.4.13            # 9 MB; nothing of it is imported
    python -m eval.packaged lm_eval-0.4.13-py3-none-any.whl data/packaged

writes, from the worked examples that lm-evaluation-harness (MIT) shows models before its questions:

    mmmlu/mmlu_XX-YY.csv     MMLU's dev split: English, and by other translators than MMMLU's: DE-DE ES-LA FR-FR
                             HI-IN IT-IT PT-BR TH-TH
    gsm8k/test, train.jsonl  the eight worked problems of chain-of-thought prompting; both files are the same
    bbh/bbh/KIND.json, bbh/cot-prompts/KIND.txt      three a kind, of 27 kinds

These rehearse a benchmark on real material. They are no benchmark: dev splits are small and widely trained on,
and under the reference protocol GSM8K and BBH then show a question among its own examples.
"""

import argparse
import csv
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from eval.rows import SUMS
from gemma4_jax.errors import UserError, report_user_errors

# The harness's folders of MMLU in other languages, and the code that MMMLU would give the language.
_LANGUAGES = {
    **{"de": "DE-DE", "es": "ES-LA", "fr": "FR-FR", "hi": "HI-IN", "it": "IT-IT", "pt": "PT-BR"},
    "th": "TH-TH",
}
_MMLU_COLUMNS = ("Question", "A", "B", "C", "D", "Answer", "Subject")
_QUESTION = re.compile(
    r"(?P<Question>.+?)\n\(A\)\s+(?P<A>.+?)\s+\(B\)\s+(?P<B>.+?)\s+\(C\)\s+(?P<C>.+?)\s+\(D\)\s+(?P<D>.+?)\n"
    r"A: .*?[Tt]he answer is \(?(?P<Answer>[A-D])\)?",
    re.DOTALL,
)


class _Loader(yaml.SafeLoader):
    """The harness's YAML; what names Python functions stays a string."""


_Loader.add_multi_constructor("!function", lambda loader, suffix, node: str(node.value))


def extract(package: Path, out: Path) -> dict[str, int]:
    """Write the files below `out`; rows of each. package: a wheel, or the folder that holds `lm_eval`."""
    tasks = _tasks(package)
    files: dict[Path, str] = {}
    counts = {}
    for name, rows in _mmlu(tasks):
        files[Path("mmmlu") / name] = _csv(rows)
        counts[f"mmmlu/{name}"] = len(rows)
    problems = _gsm8k(tasks)
    for split in ("test", "train"):
        files[Path(f"gsm8k/{split}.jsonl")] = "".join(
            json.dumps(row, ensure_ascii=False) + "\n" for row in problems
        )
    counts["gsm8k"] = len(problems)
    for kind, examples, worked in _bbh(tasks):
        files[Path(f"bbh/bbh/{kind}.json")] = json.dumps({"examples": examples}, indent=1)
        files[Path(f"bbh/cot-prompts/{kind}.txt")] = worked
        counts["bbh"] = counts.get("bbh", 0) + len(examples)
    _write(out, files)
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "package", type=Path, help="wheel of lm-eval, or the folder it is installed in"
    )
    parser.add_argument("out", type=Path, help="folder to write into")
    options = parser.parse_args(arguments)
    with report_user_errors():
        for name, rows in extract(options.package, options.out).items():
            print(f"{name}: {rows} rows")


def _tasks(package: Path) -> Any:
    """`lm_eval/tasks` in a wheel or folder; both kinds of path read alike."""
    if package.is_file() and zipfile.is_zipfile(package):
        root: Any = zipfile.Path(package)
    elif package.is_dir():
        root = package
    else:
        raise UserError(
            f"{package}: no wheel and no folder (pip download --no-deps lm-eval==0.4.13)"
        )
    tasks = root / "lm_eval" / "tasks"
    if not tasks.is_dir():
        raise UserError(f"no lm_eval/tasks in {package}; give a wheel of lm-eval, or its folder")
    return tasks


def _mmlu(tasks: Any) -> Iterator[tuple[str, list[Mapping[str, str]]]]:
    prompts = json.loads(
        (tasks / "mmlu" / "flan_cot_fewshot" / "_cot_prompts.json").read_text("utf-8")
    )
    english: list[Mapping[str, str]] = []
    for subject, text in sorted(prompts.items()):
        for block in re.split(r"(?:^|\n\n)Q: ", text)[1:]:
            if match := _QUESTION.match(block):
                english.append({**match.groupdict(), "Subject": subject})
    yield "mmlu_EN-US.csv", english
    for folder, language in _LANGUAGES.items():
        rows: list[Mapping[str, str]] = []
        for file in _yaml_files(tasks / "llama3" / "instruct" / f"mmlu_{folder}"):
            subject = file.name.removeprefix(f"mmlu_{folder}_").removesuffix(".yaml")
            for sample in _samples(file):
                (letter,) = sample["input_correct_responses"]
                choices = {key: str(sample["input_choice_list"][key]) for key in "ABCD"}
                question = sample["input_question"]
                rows.append({"Question": question, **choices, "Answer": letter, "Subject": subject})
        yield f"mmlu_{language}.csv", rows


def _gsm8k(tasks: Any) -> list[Mapping[str, str]]:
    rows: list[Mapping[str, str]] = []
    for sample in _samples(tasks / "gsm8k" / "gsm8k-cot.yaml"):
        steps, _, number = sample["target"].rpartition("The answer is ")
        answer = f"{steps.strip()}\n#### {number.strip().removesuffix('.')}"
        rows.append({"question": sample["question"], "answer": answer})
    return rows


def _bbh(tasks: Any) -> Iterator[tuple[str, list[Mapping[str, str]], str]]:
    for file in _yaml_files(tasks / "bbh" / "cot_fewshot"):
        document = _document(file)
        examples: list[Mapping[str, str]] = []
        worked = str(document["description"]).strip()
        for sample in document["fewshot_config"]["samples"]:
            _, _, target = sample["target"].rpartition("answer is ")
            examples.append({"input": sample["input"], "target": target.strip().removesuffix(".")})
            worked += f"\n\nQ: {sample['input']}\nA: Let's think step by step.\n{sample['target']}"
        yield file.name.removesuffix(".yaml"), examples, worked


def _yaml_files(folder: Any) -> list[Any]:
    """Files of a folder that hold examples, by name; those that begin with _ gather others."""
    files = [f for f in folder.iterdir() if f.name.endswith(".yaml") and not f.name.startswith("_")]
    return sorted(files, key=lambda file: str(file.name))


def _samples(file: Any) -> list[Any]:
    samples = _document(file)["fewshot_config"]["samples"]
    assert isinstance(samples, list)
    return samples


def _document(file: Any) -> Any:
    return yaml.load(file.read_text("utf-8"), Loader=_Loader)


def _csv(rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, _MMLU_COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _write(out: Path, files: Mapping[Path, str]) -> None:
    sums: dict[Path, str] = {}
    for name, text in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        digest = hashlib.sha256(text.encode()).hexdigest()
        sums[path.parent] = sums.get(path.parent, "") + f"{digest}  {path.name}\n"
    for folder, lines in sums.items():
        (folder / SUMS).write_text(lines, "utf-8")


if __name__ == "__main__":
    main()
