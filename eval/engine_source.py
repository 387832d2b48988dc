"""Models in folders, for our own engine: which folder is meant, what it is called, and an engine over it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from configs.checks import ConfigError
from configs.evals import EvalModel
from configs.mesh import MeshConfig
from eval import training_run
from eval.engine_backend import EngineBackend
from eval.fingerprint import model_fingerprint, template_hash
from gemma4_jax.checkpoint.description import describe
from gemma4_jax.errors import UserError
from gemma4_jax.text import control

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass
class EngineSource:
    """A model folder, or one checkpoint in the folder of a training run.

    name: for people; by default that of the folder. step: number of the checkpoint.
    """

    where: str
    model: EvalModel
    mesh: MeshConfig
    name: str = ""
    step: int | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        given = Path(self.where)
        if self.step is None:
            self._folder = described = weights = model_folder(given)
            self.name = self.name or default_name(self._folder)
        else:
            self._folder, described = given, training_run.description_folder(given)
            weights = training_run.state_folder(given, self.step)
            self.name = self.name or f"{default_name(given)}/{self.step}"
            self.where = str(weights.parent)
        about = describe(described)
        tokens = () if about.tokenizer is None else about.tokenizer.control_tokens
        if control.TURN not in tokens:
            raise UserError(
                f"{described} is no chat model (no tokenizer, or one without turn tokens); benchmarks are "
                "asked in the chat format"
            )
        template = template_hash(about.config.family)
        self.fingerprint = model_fingerprint(described, weights, self.model.dtype, template)

    def open(self) -> EngineBackend:
        """Load the weights and make an engine over them."""
        from gemma4_jax.checkpoint import load
        from gemma4_jax.compiled_programs import keep_compiled_programs
        from gemma4_jax.sample.drafters import open_drafter
        from gemma4_jax.sample.engine import Engine

        keep_compiled_programs()
        mesh = open_mesh(self.mesh)
        if self.step is None:
            model = load(self._folder, dtype=self.model.dtype, mesh=mesh)
        else:
            model = training_run.load_step(self._folder, self.step, self.model.dtype, mesh)
        model = model.for_decoding()
        drafter = open_drafter(self.model.drafter, model) if self.model.drafter else None
        return EngineBackend(
            Engine(
                model,
                max_slots=self.model.max_slots,
                max_tokens=self.model.max_tokens,
                drafter=drafter,
            )
        )

    def notes(self) -> list[str]:
        """Nothing: the engine does what is asked of it."""
        return []


def open_mesh(config: MeshConfig) -> Mesh | None:
    """The mesh of a run; None for one device. UserError where its sizes do not fit the devices there are."""
    import jax

    from gemma4_jax.sharding import make_mesh

    try:
        sizes = config.sizes(jax.device_count())
    except ConfigError as error:
        raise UserError(str(error)) from None
    devices = math.prod(sizes.values())
    if jax.process_count() > 1 and devices != jax.device_count():
        raise UserError(
            f"the mesh has {devices} devices and the {jax.process_count()} processes have "
            f"{jax.device_count()}; set mesh.tensor to -1, or start one process"
        )
    return make_mesh(sizes) if devices > 1 else None


def model_folder(path: Path) -> Path:
    """The folder with the weights: the one given, or the export inside a training run's."""
    if not (path / "params").is_dir() and (path / "huggingface" / "config.json").is_file():
        return path / "huggingface"
    return path


def default_name(folder: Path) -> str:
    """Of a model folder; that of its run for an export inside one."""
    absolute = folder.absolute()
    return absolute.parent.name if absolute.name == "huggingface" else absolute.name
