"""A demo's folder: reopened for the same recipe, refused for another, never somebody else's."""

from pathlib import Path

import pytest

from examples.folder import open_folder, read_rows, rows_of
from examples.narration import Narration
from examples.running import Stopped, command_line, train_once
from gemma4_jax.errors import UserError

RECIPE = {"demo": "test", "steps": 3}


def test_the_same_recipe_reopens_a_folder_and_keeps_what_is_in_it(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "runs" / "demo", RECIPE, fresh=False)
    (folder / "rows.jsonl").write_text("{}\n")
    assert (open_folder(folder, RECIPE, fresh=False) / "rows.jsonl").exists()


def test_another_recipe_is_refused_and_fresh_starts_over(tmp_path: Path) -> None:
    folder = open_folder(tmp_path / "demo", RECIPE, fresh=False)
    (folder / "rows.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="other settings; give --fresh"):
        open_folder(folder, {**RECIPE, "steps": 4}, fresh=False)
    assert (folder / "rows.jsonl").exists()
    open_folder(folder, {**RECIPE, "steps": 4}, fresh=True)
    assert not (folder / "rows.jsonl").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, fresh: bool) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="no demo made it"):
        open_folder(tmp_path, RECIPE, fresh)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_path_that_cannot_be_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use .*file.*give another --workdir"):
        open_folder(tmp_path / "file" / "demo", RECIPE, fresh=False)
    with pytest.raises(UserError, match=r"cannot use .*file.*give another --workdir"):
        open_folder(tmp_path / "file", RECIPE, fresh=False)


def test_rows_are_made_once(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "rows.jsonl"
    assert rows_of(file, lambda: [{"n": 1}, {"n": "é"}]) == [{"n": 1}, {"n": "é"}]
    assert rows_of(file, lambda: [{"n": 2}]) == read_rows(file) == [{"n": 1}, {"n": "é"}]
    assert [path.name for path in file.parent.iterdir()] == ["rows.jsonl"]


def test_rows_that_failed_to_be_made_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        rows_of(tmp_path / "rows.jsonl", lambda: [1 / 0])
    assert list(tmp_path.iterdir()) == []


def test_training_is_done_once_and_a_signal_is_passed_on(tmp_path: Path) -> None:
    codes = iter([143, 0])
    with pytest.raises(Stopped) as stop:
        train_once(str(tmp_path), lambda: next(codes), print)
    assert stop.value.code == 143
    train_once(str(tmp_path), lambda: next(codes), print)
    train_once(str(tmp_path), lambda: next(codes), print)  # a third call would have no code


def test_the_command_line_turns_endings_into_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def ending(error: BaseException | None) -> int:
        def demo(seed: int, path: Path, *, fresh: bool) -> None:
            if error is not None:
                raise error

        return command_line("demo", "about", "runs/x", demo, ["--seed", "3"])

    assert ending(None) == 0
    assert ending(Stopped(143)) == 143
    assert ending(KeyboardInterrupt()) == 130
    assert capsys.readouterr().out.count("the same command goes on") == 2
    with pytest.raises(SystemExit) as leaving:
        ending(UserError("no such thing"))
    assert leaving.value.code == 2
    assert capsys.readouterr().err == "error: no such thing\n"


def test_a_seed_out_of_range_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line("demo", "about", "runs/x", lambda *_, **__: None, ["--seed", "-1"])
    assert capsys.readouterr().err.startswith("error: --seed is -1; it must be from 0")


def test_narration_numbers_parts_and_keeps_their_times(capsys: pytest.CaptureFixture[str]) -> None:
    narration = Narration(parts=2)
    narration.part("first")
    narration.part("second")
    narration.end()
    out = capsys.readouterr().out
    assert "1/2 first" in out and "2/2 second" in out
    assert [title for title, _, _ in narration.seconds] == ["first", "second"]
    assert all(wall >= 0 and cpu >= 0 for _, wall, cpu in narration.seconds)
