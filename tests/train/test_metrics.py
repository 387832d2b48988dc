"""The metrics file survives kills; windows average what they should; the picture is drawn."""

import json

import numpy as np
import pytest

from train.metrics import MetricsFile, Window, plot, read


def test_rows_after_the_restored_step_and_half_a_line_go_away(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsFile(path, 0)
    for step in (10, 20, 30):
        log.write(step, {"loss": step / 10})
    log.close()
    with open(path, "a") as file:
        file.write('{"step": 40, "lo')
    assert [row["step"] for row in read(path)] == [10, 20, 30]
    log = MetricsFile(path, 20)
    log.write(30, {"loss": float("nan")})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert rows[2]["loss"] is None


def test_a_new_run_in_an_old_folder_starts_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n')
    MetricsFile(path, 0).close()
    assert path.read_text() == ""


def test_window_averages_and_counts():
    window = Window(flops_per_token=10.0, peak=1e6, epochs_per_step=0.5)
    batch = {"segment_ids": np.asarray([[1, 1, 2, 0]])}
    for loss, rate in ((2.0, 0.1), (float("nan"), 0.2), (4.0, 0.3)):
        window.add(batch, {"loss": loss, "learning_rate": rate, "skipped": 1.0})
    row = window.close(3)
    assert row["loss"] == pytest.approx(3.0)
    assert row["learning_rate"] == 0.3 and row["skipped"] == 1.0 and row["epoch"] == 1.5
    # The first step of a process is not counted: it compiles.
    rate = row["tokens_per_second"]
    assert rate > 0 and row["mfu"] == pytest.approx(rate * 10.0 / 1e6)


def test_plot(tmp_path):
    path, picture = tmp_path / "metrics.jsonl", tmp_path / "metrics.png"
    path.write_text("")
    plot(path, picture, ("loss",))
    assert not picture.exists()
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": null}\n{"step": 3, "loss": 1}\n')
    plot(path, picture, ("loss", "absent"))
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_plot_shows_validation_beside_training(tmp_path):
    path, picture = tmp_path / "metrics.jsonl", tmp_path / "metrics.svg"
    rows = [{"step": n, "loss": 2.0, "validation/a/loss": 3.0 - n} for n in (1, 2)]
    rows += [{"step": 3, "loss": 1.0, "validation/b/other": 1.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot(path, picture, ("loss",))
    labels = picture.read_text()
    assert "validation: a" in labels and "validation: b" not in labels
