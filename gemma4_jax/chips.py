"""Public figures of accelerators: the peaks and the links that limits are computed from.

Dense bfloat16 products with float32 accumulation, no sparsity; what one program can reach is less. Google
states memory in GiB, NVIDIA in 10^9 bytes. Not here: how many of them there are and in what shape
(`topology.py`), and machines nobody published figures for.
"""

from dataclasses import dataclass

_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One accelerator. flops: bfloat16 operations a second; bandwidth: bytes a second; memory: bytes.

    devices: how many devices of JAX it is; they share all of the above evenly, and its links.
    torus: dimensions of the torus that links chips, 0 where all chips of a host reach each other alike.
    link: bytes a second, one way, of one of its 2 x torus links; where torus is 0, into all of a host's
    others together. network: bytes a second, one way, between hosts; 0 where a slice needs none or nothing
    is known. per_host: chips of a host.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    devices: int = 1
    torus: int
    link: float
    network: float = 0.0
    per_host: int


# Links of TPUs: Google states the sum of all of a chip's, both ways (v5e 400, v6e 800, v5p and tpu7x 1200
# GB/s); a link's one way is that by 4 x torus. TPU slices of one kind are joined by links alone.
# GPUs: NVIDIA states NVLink both ways (900 GB/s). Between hosts is assumed: one 400 Gbit/s adapter a GPU, as in
# DGX and HGX reference designs.
CHIPS: dict[str, Chip] = {
    chip.name: chip
    for chip in (
        # https://docs.cloud.google.com/tpu/docs/v5e
        Chip(name="v5e", flops=197e12, bandwidth=819e9, memory=16 * _GIB,
             torus=2, link=50e9, per_host=4),
        # https://docs.cloud.google.com/tpu/docs/tpu7x compares v5p, v6e and tpu7x in one table.
        Chip(name="v5p", flops=459e12, bandwidth=2765e9, memory=95 * _GIB,
             torus=3, link=100e9, per_host=4),
        Chip(name="v6e", flops=918e12, bandwidth=1638e9, memory=32 * _GIB,
             torus=2, link=100e9, per_host=4),
        Chip(name="tpu7x", flops=2307e12, bandwidth=7380e9, memory=192 * _GIB, devices=2,
             torus=3, link=100e9, per_host=4),
        # SXM: https://resources.nvidia.com/en-us-gpu-resources/h100-datasheet-24306 (halved: no sparsity)
        Chip(name="h100", flops=989.4e12, bandwidth=3350e9, memory=80 * 10**9,
             torus=0, link=450e9, network=50e9, per_host=8),
        # SXM: https://www.nvidia.com/en-us/data-center/h200/
        Chip(name="h200", flops=989.4e12, bandwidth=4800e9, memory=141 * 10**9,
             torus=0, link=450e9, network=50e9, per_host=8),
        # https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf, table 2.
        # No NVLink: PCIe 4.0 x16, 31.5 GB/s by its standard.
        Chip(name="rtx4090", flops=165.2e12, bandwidth=1008e9, memory=24 * 10**9,
             torus=0, link=31.5e9, per_host=8),
    )
}  # fmt: skip
