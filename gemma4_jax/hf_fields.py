"""Typed look-ups in a parsed `config.json`; errors name the key that is wrong or missing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma4_jax.errors import UserError


@dataclass(frozen=True)
class Fields:
    """One JSON object of a config.json; `where` is its path inside the file, for messages."""

    data: Mapping[str, Any]
    where: str = ""

    def _wrong(self, key: str, wanted: str) -> UserError:
        value = repr(self.data[key])
        shown = value if len(value) <= 60 else value[:57] + "..."
        return UserError(f"config.json: {self.where}{key} must be {wanted}, got {shown}")

    def integer(self, key: str, default: int) -> int:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(key, "a whole number")
        return value

    def optional_integer(self, key: str, default: int | None = None) -> int | None:
        return None if self.data.get(key, default) is None else self.integer(key, default or 0)

    def required_integer(self, key: str, reason: str) -> int:
        if self.data.get(key) is None:
            raise UserError(f"config.json: {self.where}{key} is missing; {reason} needs it")
        return self.integer(key, 0)

    def number(self, key: str, default: float) -> float:
        value = self.data.get(key, default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self._wrong(key, "a number")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def integers(self, key: str) -> tuple[int, ...] | None:
        """One id or a list of them; None if absent or null."""
        value = self.data.get(key)
        if value is None:
            return None
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise self._wrong(key, "a token id or a list of them")
        return tuple(ids)

    def object(self, key: str, default: Mapping[str, Any] | None = None) -> "Fields":
        value = self.data.get(key, default)
        if value is None and default is not None:
            value = default
        if not isinstance(value, Mapping):
            if value is None:
                raise UserError(f"config.json: {self.where}{key} is missing")
            raise self._wrong(key, "an object")
        return Fields(value, f"{self.where}{key}.")

    def must_be(self, key: str, supported: Any, reason: str) -> None:
        """A switch that this implementation knows in one position only."""
        if self.data.get(key, supported) != supported:
            raise UserError(
                f"config.json: {self.where}{key} is {self.data[key]!r}; only {supported!r} is "
                f"supported ({reason})"
            )
