"""How a run is spread over devices: the sizes of the five mesh axes.

Not here: what each axis splits, and the mesh itself.
"""

import dataclasses
import math

from configs.checks import ConfigError, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each axis; all axes are always there, of size 1 where they are not used."""

    data: int = 1
    """Copies of the model, each with rows of its own."""
    fsdp: int = -1
    """Devices that share parameters, gradients and optimiser state, each with rows of its own."""
    expert: int = 1
    """Devices that share the experts of a mixture."""
    seq: int = 1
    """Devices that share the tokens of a row."""
    tensor: int = 1
    """Devices that share heads and the width of MLPs."""

    def __post_init__(self) -> None:
        for name, size in self._given().items():
            bound = "at least 1, or -1 for all devices that the other axes leave"
            check(size == -1 or size >= 1, f"mesh.{name}", size, bound)
        open_axes = [name for name, size in self._given().items() if size == -1]
        if len(open_axes) > 1:
            raise ConfigError(
                f"mesh.{' and mesh.'.join(open_axes)} are -1; one of them can take what the others leave"
            )

    def sizes(self, devices: int) -> dict[str, int]:
        """Size of every axis on so many devices, in the order of the axes.

        Their product is `devices` where an axis is open, at most that where all sizes are given. Raises
        ConfigError where that cannot be.
        """
        given = self._given()
        fixed = {name: size for name, size in given.items() if size != -1}
        product = math.prod(fixed.values())
        is_open = len(fixed) < len(given)
        if devices % product if is_open else product > devices:
            raise ConfigError(_misfit(given, fixed, devices))
        return {name: devices // product if size == -1 else size for name, size in given.items()}

    def _given(self) -> dict[str, int]:
        return dataclasses.asdict(self)


def _misfit(given: dict[str, int], fixed: dict[str, int], devices: int) -> str:
    """Which axis does not fit, and what would."""
    product = math.prod(fixed.values())
    sizes = " x ".join(f"mesh.{name} {size}" for name, size in fixed.items() if size > 1)
    if len(fixed) == len(given):
        return (
            f"{sizes} is {product}, more than the {devices} devices; lower one of them, or set it to -1 for "
            "what the others leave"
        )
    # The largest of those that can be put right alone.
    alone = [name for name, size in fixed.items() if devices % (product // size) == 0]
    if not alone:
        known = ", ".join(str(n) for n in _divisors(devices))
        return f"{sizes} is {product}; the product must divide the {devices} devices: take each from {known}"
    name = max(alone, key=lambda axis: fixed[axis])
    others = ", ".join(f"{axis}={size}" for axis, size in given.items() if axis != name)
    left = devices // (product // fixed[name])
    start = f"mesh.{name} is {fixed[name]}; with {others} it must"
    legal = _divisors(left)
    near = [max(n for n in legal if n < fixed[name])]
    near += [min(larger)] if (larger := [n for n in legal if n > fixed[name]]) else []
    of = f"the {devices} devices" if left == devices else f"{left}, its share of {devices} devices"
    return f"{start} divide {of}: {' or '.join(map(str, near))}"


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
