"""TPUs by name and shape.

Sources: the pages "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation (peak rates, bandwidth, shapes).
The memory is what libtpu's compiler lets a program use of the chip's 16, 95 and 32 GB. A float32 product at full
precision takes six passes in bfloat16. The clock is the peak rate over the products of one cycle: 4 units of 128 x 128
on v5e, 8 on v5p, and 16 (as 4 of 256 x 256) on v6e. In the compiler's own estimates a large product reaches 70 to 90%
of that rate.
"""

import dataclasses

from privimage_jax.targets.machine import Machine


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A generation: one device a chip.

    Attributes:
      memory: of a chip, in 2^30 bytes.
      bandwidth: of that memory, in 10^9 bytes a second.
      peak: bfloat16 operations, in 10^12 a second.
      clock: in GHz.
      shapes: of the slices that can be rented.
    """

    memory: float
    bandwidth: float
    peak: float
    clock: float
    shapes: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")

TPUS = {
    "v5e": Tpu(15.75, 819, 197, 1.5, _FLAT),
    "v5p": Tpu(95.74, 2765, 459, 1.75, _CUBES),
    "v6e": Tpu(31.25, 1640, 918, 1.75, _FLAT),
}


def named(name: str, shape: str) -> Machine:
    """A slice of a generation in `TPUS`, of one of its shapes."""
    tpu, chips = TPUS[name], 1
    for side in shape.split("x"):
        chips *= int(side)
    peak = tpu.peak * 1e12
    # TF32 is no TPU's precision; what asks for it gets three passes.
    peaks = {"bfloat16": peak, "tf32": peak / 3, "float32": peak / 6}
    return Machine(
        f"{name}:{shape}",
        "tpu",
        chips,
        int(tpu.memory * 2**30),
        tpu.bandwidth * 1e9,
        peaks,
        tpu.clock * 1e9,
        f"{name}:{shape}",
    )
