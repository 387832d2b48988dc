"""The linter's fixes as pairs: one fix applied to a few lines, the split, what is left out."""

from pathlib import Path

from examples.ruff_rules.fixes import Fix, apply, choose, find_fixes
from examples.ruff_rules.rules import Rule, installed_ruff

LINES = ["import os\n", "class A:\n", "    x = [ ]\n", "    y = not a == b\n", "    z = 1\n"]


def edit(content: str, first: tuple[int, int], last: tuple[int, int]) -> dict[str, object]:
    places = [{"row": row, "column": column} for row, column in (first, last)]
    return {"content": content, "location": places[0], "end_location": places[1]}


def test_edits_are_applied_to_their_lines_and_the_next_ones() -> None:
    found = apply(LINES, [edit("a != b", (4, 9), (4, 19))])
    assert found == ("x = [ ]\ny = not a == b\nz = 1", "x = [ ]\ny = a != b\nz = 1")
    # Several edits of one fix; their places are those of the text before it.
    both = [edit("[]", (3, 9), (3, 12)), edit("a != b", (4, 9), (4, 19))]
    assert apply(LINES, both) == apply(LINES, both[::-1])
    assert apply(LINES, both)[1] == "class A:\n    x = []\n    y = a != b\n    z = 1"


def test_a_deleted_line_and_the_end_of_a_file() -> None:
    assert apply(LINES, [edit("", (1, 1), (2, 1))])[1] == "class A:\n    x = [ ]"
    assert apply(LINES, [edit("", (5, 1), (6, 1))])[1] == "y = not a == b"


def test_what_is_too_large_or_changes_nothing_is_left_out() -> None:
    assert apply(LINES, [edit("[ ]", (3, 9), (3, 12))]) is None
    assert apply(["x\n"] * 40, [edit("y", (1, 1), (1, 2)), edit("y", (30, 1), (30, 2))]) is None
    assert apply(["x" * 400 + "\n"], [edit("y", (1, 1), (1, 2))]) is None


def test_files_are_split_and_no_held_out_line_is_trained_on() -> None:
    rules = [Rule(code=c, name=c, summary="", what="", why="", bad="", good="") for c in "AB"]
    fixes = [
        Fix(code=code, file=f"f{file}.py", bad=f"bad{n}", good=f"good{n}{code}")
        for code in "ABC"
        for file in range(20)
        for n in range(file, file + 3)
    ]
    train, held_out = choose(fixes, rules, 4, 2)
    assert {rule.code for rule in train} == {"A", "B"} >= {rule.code for rule in held_out}
    assert max(sum(rule.code == code for rule in train) for code in "AB") <= 4
    texts = {text for rule in train for text in (rule.bad, rule.good)}
    assert held_out and not texts & {text for rule in held_out for text in (rule.bad, rule.good)}
    assert choose(reversed(fixes), rules, 4, 2) == (train, held_out)


def test_fixes_of_the_installed_linter(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("def f(a: int) -> bool:\n    return not a == 1\n")
    found = {
        fix.code: fix for fix in find_fixes(installed_ruff(), [tmp_path / "code.py"], tmp_path)
    }
    assert found["SIM201"].file == "code.py"
    assert found["SIM201"].bad == "def f(a: int) -> bool:\n    return not a == 1"
    assert found["SIM201"].good == "def f(a: int) -> bool:\n    return a != 1"
