"""What a run says about itself: metrics.jsonl, one line a log step, and a picture of the loss.

Here: the file (appended, one write a line, so that a kill loses at most the last one) and the plot. Not
here: what is measured (step.py, throughput.py), the console (progress.py).
"""

import json
import math
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gemma4_jax.errors import UserError

# Not averaged over a window: what counts up, and what a schedule says.
_LAST = ("learning_rate", "bad_steps", "skipped")


class MetricsFile:
    """Appends rows {"step": ..., name: value} to a JSONL file."""

    def __init__(self, path: Path, restored_step: int):
        """Drop rows after `restored_step` (of a run that was killed later than its last checkpoint)."""
        self.path = path
        kept = [row for row in read(path) if row["step"] <= restored_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(map(_line, kept)))
        temporary.replace(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one row; numbers that are not finite become null."""
        os.write(self._file, _line({"step": step, **values}).encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Window:
    """What happened between two lines of the log."""

    def __init__(
        self,
        flops_per_token: float,
        peak: float | None,
        epochs_per_step: float,
        devices: int = 1,
        shares: int = 1,
    ):
        """flops_per_token: of training; peak: of one device in FLOP/s, None if it is not known. shares: in how
        many parts processes bring a batch; the tokens of this one's part stand for the others'."""
        self._flops, self._peak, self._epochs = flops_per_token, peak, epochs_per_step
        self._devices, self._shares = devices, shares
        self._steps: list[Mapping[str, Any]] = []
        self._tokens = 0
        self._waits: list[float] = []
        self._start: float | None = None
        self._spent = 0.0

    def add(
        self, batch: Mapping[str, np.ndarray], metrics: Mapping[str, Any], waited: float = 0.0
    ) -> None:
        """Count one step; `metrics` stay on the device until the window closes.

        waited: seconds until the batch was there.
        """
        self._steps.append(metrics)
        if self._start is None:
            # The first step of a process compiles: time runs from its end.
            float(metrics["loss"])
            self._start = time.monotonic()
        else:
            self._tokens += self._shares * int((batch["segment_ids"] > 0).sum())
            self._waits.append(waited)

    def resume(self) -> None:
        """Time from now on counts again: what lay before was no step."""
        if self._start is not None:
            self._start = time.monotonic() - self._spent

    def pause(self) -> None:
        """What comes next is no step (a validation)."""
        if self._start is not None:
            self._spent = time.monotonic() - self._start

    def close(self, step: int) -> dict[str, float]:
        """Row of metrics: counters and rates of the last step, means of everything else.

        input_wait: seconds a step waited for its batch.

        Steps that were skipped do not enter the means.
        """
        steps = [{name: float(value) for name, value in m.items()} for m in self._steps]
        row: dict[str, float] = {}
        for name in steps[-1]:
            values = [m[name] for m in steps]
            finite = [value for value in values if math.isfinite(value)]
            if name in _LAST:
                row[name] = values[-1]
            else:
                row[name] = sum(finite) / len(finite) if finite else math.nan
        row["epoch"] = step * self._epochs
        if self._waits:
            row["input_wait"] = sum(self._waits) / len(self._waits)
        now = time.monotonic()
        seconds = now - (self._start or now)
        if self._tokens and seconds > 0:
            row["tokens_per_second"] = self._tokens / seconds
            flops = self._tokens * self._flops / seconds / self._devices
            row["tflops_per_device"] = flops / 1e12
            if self._peak is not None:
                row["mfu"] = flops / self._peak
        self._steps, self._tokens, self._waits, self._start = [], 0, [], now
        return row


class TensorBoard:
    """Writes rows of metrics where TensorBoard reads them."""

    def __init__(self, folder: Path):
        """UserError if tensorboardX is not installed."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise UserError(
                "run.tensorboard needs tensorboardX: pip install 'gemma4_jax[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder), flush_secs=10)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One point of every curve; a name before the slash makes a group."""
        for name, value in values.items():
            self._writer.add_scalar(name if "/" in name else f"train/{name}", value, step)

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file, without a last line that a kill cut short; [] if there is no file."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot(metrics: Path, picture: Path, names: tuple[str, ...] = ("loss",)) -> None:
    """Draw the named metrics over steps, one panel each, into a picture; nothing if there are no rows.

    Beside each metric of training, what validation measured of it, source by source.
    """
    # matplotlib takes half a second to import: only a finished run pays for it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read(metrics)
    shown = [name for name in names if any(row.get(name) is not None for row in rows)]
    if not shown:
        return
    figure = Figure(figsize=(7, 3 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        keys = {key for row in rows for key in row}
        held_out = sorted(k for k in keys if re.fullmatch(f"validation/.*/{re.escape(name)}", k))
        for key in (name, *held_out):
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            style = {"marker": "o", "markersize": 3} if key in held_out else {}
            source = key.removeprefix("validation/").removesuffix(f"/{name}")
            label = f"validation: {source}" if key in held_out else "training"
            axis.plot(*zip(*points, strict=True), linewidth=1.2, label=label, **style)
        if held_out:
            axis.legend()
        axis.set_ylabel(name)
        axis.grid(alpha=0.3)
    axis.set_xlabel("step")
    figure.savefig(picture, dpi=120)


def _line(row: Mapping[str, Any]) -> str:
    finite = {
        k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in row.items()
    }
    return json.dumps(finite) + "\n"
