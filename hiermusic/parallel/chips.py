"""What accelerators can do, from their makers' data sheets.

TPUs: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}. A chip's interconnect bandwidth is given there for all
links and both directions together; here it stands for one link and one direction, as in the Scaling Book
(jax-ml.github.io/scaling-book/tpus), which also has v4's 45 GB/s and the 200 Gbit/s network card that a v4 host of four
chips has. v5e's share of the data-centre network is its pod's 6.4 Tbit/s over 256 chips.
GPUs: NVIDIA's data sheets of the SXM modules, bfloat16 without sparsity. NVLink joins each to a switch, which is one
link here; the network is that of the DGX systems, one card a GPU (200 Gbit/s for A100, 400 Gbit/s for the others).
"""

from dataclasses import dataclass

import jax

_GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """An accelerator.

    Args:
      name: its key in `CHIPS`.
      peak_flops: dense bfloat16, operations a second.
      memory: bytes of HBM.
      memory_bandwidth: of it, bytes a second.
      ici_bandwidth: that one link to a neighbour within a slice (or to the switch of a node) carries in one direction,
        bytes a second.
      ici_axes: dimensions of the torus its links form, two links each; 0 for one link to a switch.
      ring: a torus dimension closes into a ring where its length is a multiple of this.
      dcn_bandwidth: a chip's share of the network between slices or nodes, one direction, bytes a second.
      kinds: beginnings of `jax.Device.device_kind` on this chip.
      devices_per_chip: JAX devices that share one chip.
    """

    name: str
    peak_flops: float
    memory: float
    memory_bandwidth: float
    ici_bandwidth: float
    ici_axes: int
    ring: int
    dcn_bandwidth: float
    kinds: tuple[str, ...]
    devices_per_chip: int = 1

    @property
    def device_flops(self) -> float:
        """Peak of one JAX device."""
        return self.peak_flops / self.devices_per_chip


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32 * _GIB, 1.2e12, 45e9, 3, 4, 6.25e9, ("TPU v4",)),
        Chip("v5e", 197e12, 16 * _GIB, 819e9, 50e9, 2, 16, 3.125e9, ("TPU v5 lite", "TPU v5e")),
        Chip("v5p", 459e12, 95 * _GIB, 2.765e12, 100e9, 3, 4, 6.25e9, ("TPU v5", "TPU v5p")),
        Chip("v6e", 918e12, 32 * _GIB, 1.638e12, 100e9, 2, 16, 12.5e9, ("TPU v6 lite", "TPU v6e")),
        Chip("tpu7x", 2307e12, 192 * _GIB, 7.38e12, 100e9, 3, 4, 12.5e9, ("TPU7x", "TPU v7x"), devices_per_chip=2),
        Chip("a100", 312e12, 80e9, 2.039e12, 300e9, 0, 1, 25e9, ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe")),
        Chip("h100", 989e12, 80e9, 3.35e12, 450e9, 0, 1, 50e9, ("NVIDIA H100 80GB HBM3",)),
        Chip("h200", 989e12, 141e9, 4.8e12, 450e9, 0, 1, 50e9, ("NVIDIA H200",)),
        Chip("b200", 2250e12, 180e9, 8e12, 900e9, 0, 1, 50e9, ("NVIDIA B200",)),
    )
}


def chip_of(device: jax.Device) -> Chip | None:
    """The chip that a device is, or is a part of; None for a CPU and what is not in the table."""
    named = [(kind, chip) for chip in CHIPS.values() for kind in chip.kinds if device.device_kind.startswith(kind)]
    return max(named, key=lambda pair: len(pair[0]))[1] if named else None
