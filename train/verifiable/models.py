"""The models of a run, one at a time in memory. Not here: what they are asked."""

import gc
from pathlib import Path

from gemma4_jax import checkpoint
from gemma4_jax.build import Model
from gemma4_jax.checkpoint.fingerprint import fingerprint


class Models:
    """Loads a folder when it is first needed; `forget` gives its memory back.

    dtype: of parameters and computation while answering and scoring.
    """

    def __init__(self, dtype: str) -> None:
        self._dtype = dtype
        self._path = Path()
        self._model: Model | None = None
        self._known: dict[Path, str] = {}

    def load(self, path: Path) -> Model:
        """The model in `path`; the one before it is forgotten."""
        if self._model is None or path != self._path:
            self.forget()
            model = checkpoint.load(path, self._dtype).for_decoding()
            self._path, self._model = path, model
        return self._model

    def fingerprint(self, path: Path) -> str:
        """Of the model in `path`."""
        if path not in self._known:
            self._known[path] = fingerprint(path)
        return self._known[path]

    def forget(self) -> None:
        """Free the model."""
        self._model = None
        gc.collect()
