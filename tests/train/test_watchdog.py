"""The watchdog: silent while steps are steady, one report a silence, none for what is no step."""

import time

from train.watchdog import Watchdog


def test_a_silence_is_told_once_with_all_stacks(tmp_path, capsys):
    file = tmp_path / "stacks.txt"
    with Watchdog(file, factor=10, shortest=0.2) as dog:
        for _ in range(6):
            time.sleep(0.01)
            dog.beat()
        assert dog.limit == 0.2
        time.sleep(0.15)  # ten times the median, but nothing to worry about
        dog.beat()
        assert not file.exists()
        time.sleep(0.6)
        assert file.read_text().count("no step for") == 1
        assert "test_a_silence_is_told_once" in file.read_text()
        dog.beat()
        time.sleep(0.4)
        assert file.read_text().count("no step for") == 2
    errors = capsys.readouterr().err
    assert errors.count("warning: no step for") == 2 and str(file) in errors


def test_the_first_steps_and_pauses_are_not_judged(tmp_path):
    file = tmp_path / "stacks.txt"
    with Watchdog(file, shortest=0.05) as dog:
        time.sleep(0.2)  # compiling
        assert dog.limit is None
        for _ in range(5):
            dog.beat()
        dog.pause()
        time.sleep(0.3)
        assert not file.exists()
        dog.resume()
        time.sleep(0.3)
        assert file.exists()


def test_a_folder_that_is_gone_does_not_end_the_run(tmp_path, capfd):
    with Watchdog(tmp_path / "gone" / "stacks.txt", shortest=0.05) as dog:
        for _ in range(5):
            dog.beat()
        time.sleep(0.2)
    assert "most recent call first" in capfd.readouterr().err
