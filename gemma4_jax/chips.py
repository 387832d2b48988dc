"""Public figures of accelerators: the peaks that limits are computed from.

Dense bfloat16 products with float32 accumulation, no sparsity; what one program can reach is less. Google
states memory in GiB, NVIDIA in 10^9 bytes. Not here: interconnects, and machines nobody published
figures for.
"""

from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator. flops: bfloat16 operations a second; bandwidth: bytes a second; memory: bytes."""

    name: str
    flops: float
    bandwidth: float
    memory: int


CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # https://docs.cloud.google.com/tpu/docs/v5e
        Chip(name="v5e", flops=197e12, bandwidth=819e9, memory=16 * _GIB),
        # https://docs.cloud.google.com/tpu/docs/tpu7x compares v5p, v6e and tpu7x in one table.
        Chip(name="v5p", flops=459e12, bandwidth=2765e9, memory=95 * _GIB),
        Chip(name="v6e", flops=918e12, bandwidth=1638e9, memory=32 * _GIB),
        Chip(name="tpu7x", flops=2307e12, bandwidth=7380e9, memory=192 * _GIB),
        # SXM: https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306 (halved: no sparsity)
        Chip(name="h100", flops=989.4e12, bandwidth=3350e9, memory=80 * 10**9),
        # SXM: https://www.nvidia.com/en-us/data-center/h200/
        Chip(name="h200", flops=989.4e12, bandwidth=4800e9, memory=141 * 10**9),
        # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf, table 2
        Chip(name="rtx4090", flops=165.2e12, bandwidth=1008e9, memory=24 * 10**9),
    )
}
