"""What is said of a value that cannot be used. Not here: the values (schema.py and its parts)."""


class ConfigError(ValueError):
    """A configuration that cannot be run; `str(error)` is one line: value, bound, way out."""


def check(ok: bool, name: str, value: object, bound: str) -> None:
    """Raise a `ConfigError` about a value that is not ok; bound: what it must be."""
    if not ok:
        raise ConfigError(f"{name} is {value!r}; it must be {bound}")
