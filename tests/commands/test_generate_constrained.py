"""`gemma4 generate` with a schema, a regex, choices, a grammar or tools; every mistake is one line."""

import json
import re

import pytest

pytest.importorskip("llguidance", reason="pip install -e '.[dev]'")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "now",
            "parameters": {"type": "object", "properties": {"utc": {"type": "boolean"}}, "required": ["utc"]},
        },
    }
]  # fmt: skip
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "ok": {"type": "boolean"}},
    "required": ["n", "ok"],
}  # fmt: skip
LONG = ("--max-new-tokens", "60")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    texts = {
        "schema.json": json.dumps(SCHEMA | {"additionalProperties": False}),
        "list.lark": 'start: "a" ("," "a"){2}',
        "tools.json": json.dumps(TOOLS),
        "broken.json": "{",
        "impossible.json": '{"type": "string", "minLength": 3, "maxLength": 2}',
        "endless.json": '{"type": "array", "items": {"$ref": "#"}, "minItems": 1}',
        "bad.lark": "start: other",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "bytes.json").write_bytes(b"\xff")
    return folder


@pytest.mark.parametrize("raw", [True, False])
def test_answers_are_what_was_asked_for(run, model_folder, files, raw):
    words = ("generate", str(model_folder), "Hi", *LONG, *(["--raw"] if raw else []))
    result = run(*words, "--schema", str(files / "schema.json"))
    found = json.loads(result.out)
    assert set(found) == {"n", "ok"} and 0 <= found["n"] <= 99 and type(found["ok"]) is bool
    assert re.fullmatch(r"[0-9]{2}:[0-9]{2}\n", run(*words, "--regex", "[0-9]{2}:[0-9]{2}").out)
    assert run(*words, "--choices", "maybe so, never").out in ("maybe so\n", "never\n")
    assert run(*words, "--grammar", str(files / "list.lark")).out == "a,a,a\n"


def test_tools_can_be_demanded(run, model_folder, files):
    words = ("generate", str(model_folder), "Hi", *LONG, "--tools", str(files / "tools.json"))
    for choice in ("now", "required"):
        result = run(*words, "--tool-choice", choice, "--json")
        report = json.loads(result.out)
        assert report["content"] is None and report["finish_reason"] == "stop"
        for call in report["tool_calls"]:
            assert call["name"] == "now" and type(call["arguments"]["utc"]) is bool
    assert run(*words, "--tool-choice", "none").code == 0


def test_mistakes_are_one_line(complaint, model_folder, files):
    folder = str(model_folder)

    def path(name):
        return str(files / name)

    for words, part in (
        (("--schema", "nowhere.json"), "nowhere.json: No such file"),
        (("--schema", path("bytes.json")), "not UTF-8"),
        (("--schema", path("broken.json")), "not JSON"),
        (("--schema", path("impossible.json")), "minLength (3) is greater"),
        (("--schema", path("endless.json")), "no finite value"),
        (("--regex", "("), "unclosed group"),
        (("--regex", ""), "not empty"),
        (("--choices", "a,,b"), "choice must be text"),
        (("--choices", ""), "choice must be text"),
        (("--grammar", path("bad.lark")), "other"),
        (("--regex", "a", "--choices", "b"), "drop one"),
        (("--regex", "a", "--stop", "b"), "stop string"),
        (("--tools", path("broken.json")), "not JSON"),
        (("--tools", path("schema.json")), "tools must be a list"),
        (("--tools", path("tools.json"), "--tool-choice", "nwo"), "did you mean 'now'"),
        (("--tool-choice", "required"), "needs tools"),
        (("--tools", path("tools.json"), "--raw"), "--tools"),
        (("--tools", path("tools.json"), "--tool-choice", "now", "--regex", "a"), "drop one"),
    ):
        assert part in complaint("generate", folder, "Hi", *words), words
