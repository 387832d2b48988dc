"""provisional"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """How devices share the work."""

    data: int = 1
    """a"""
    fsdp: int = -1
    """b"""
    expert: int = 1
    """c"""
    seq: int = 1
    """d"""
    tensor: int = 1
    """e"""

    def sizes(self, devices: int) -> dict[str, int]:
        given = dataclasses.asdict(self)
        named = math.prod(n for n in given.values() if n > 0)
        return {a: devices // named if n == -1 else n for a, n in given.items()}
