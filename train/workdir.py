"""The folder of a run: what may be continued in it, and what was written beside the checkpoints.

Here: config.json, data.json and the refusal to go on with something else. Not here: checkpoints
themselves (checkpointer.py).
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from configs.schema import AnyConfig, SFTConfig, flatten
from gemma4_jax.distributed import barrier, is_main
from gemma4_jax.errors import UserError

# May differ when a run goes on: they change neither the model nor the data, only where it runs and is held, and
# where and how often something is written. The data's contents, and the weights of a mixture, are compared by
# fingerprint instead of by path.
FREE = frozenset(
    {
        "run.workdir",
        "run.log_every",
        "run.save_every",
        "run.keep",
        "run.keep_every",
        "run.keep_best",
        "run.samples",
        "run.tensorboard",
        "run.profile_at",
        "run.profile_steps",
        "run.peak_tflops",
        "run.export_huggingface",
        "optim.offload",
        "model.gpu_kernels",
        "data.path",
        "data.validation",
        "data.mixture",
        "data.workers",
        "data.cache_dir",
        "mesh.data",
        "mesh.fsdp",
        "mesh.expert",
        "mesh.seq",
        "mesh.tensor",
    }
)


class Workdir:
    """Paths of a run's folder, and what it remembers between processes."""

    def __init__(self, config: AnyConfig):
        """Create the folder; UserError if that is impossible or it holds another kind of run."""
        self.path = Path(config.run.workdir).absolute()
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.plot = self.path / "metrics.png"
        self.report = self.path / "report.html"
        self.samples = self.path / "samples.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.profile = self.path / "profile"
        self.huggingface = self.path / "huggingface"
        self.adapter = self.path / "adapter"
        self.reference = self.path / "reference"
        self.cache = Path(config.data.cache_dir or self.path / "cache").absolute()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._open_config(config)
        except OSError as error:
            raise UserError(
                f"cannot use {config.run.workdir} as work folder: {error.strerror}; set run.workdir"
            ) from None

    def has_checkpoint(self) -> bool:
        """Whether a whole checkpoint is there (unfinished ones have longer names)."""
        return any(entry.name.isdigit() for entry in self.checkpoints.iterdir())

    def open_data(self, fingerprint: str, summary: str) -> None:
        """Note what is trained on; UserError if checkpoints here were trained on something else."""
        saved = self._read("data.json")
        if self.has_checkpoint() and saved and saved["fingerprint"] != fingerprint:
            raise UserError(
                f"the data is not what the run in {self.path} was started with "
                f"(then: {saved['summary']}; now: {summary}); use another run.workdir, or the old data"
            )
        barrier("data read")  # before it is written: all processes compare with what was there
        self._write("data.json", {"fingerprint": fingerprint, "summary": summary})

    def _open_config(self, config: AnyConfig) -> None:
        now = {"task": "sft" if isinstance(config, SFTConfig) else "dpo", **dict(flatten(config))}
        now = json.loads(json.dumps(now))  # as a file gives it back: tuples are lists
        saved = self._read("config.json")
        if self.has_checkpoint() and saved:
            then = {"task": saved["task"], **_flatten_dict(saved["config"])}
            changed = [
                f"{name} was {then.get(name)!r}, is {now.get(name)!r}"
                for name in dict.fromkeys([*then, *now])
                if name not in FREE and then.get(name) != now.get(name)
            ]
            if changed:
                raise UserError(
                    f"the run in {self.path} was started with another configuration: "
                    f"{'; '.join(changed)}; use another run.workdir, or the old values"
                )
        barrier("config read")
        self._write("config.json", {"task": now["task"], "config": dataclasses.asdict(config)})

    def _read(self, name: str) -> dict[str, Any] | None:
        file = self.path / name
        return json.loads(file.read_text()) if file.exists() else None

    def _write(self, name: str, value: dict[str, Any]) -> None:
        if not is_main():
            return
        temporary = self.path / f"{name}.tmp-{os.getpid()}"
        temporary.write_text(json.dumps(value, indent=2) + "\n")
        temporary.replace(self.path / name)


def _flatten_dict(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten_dict(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
