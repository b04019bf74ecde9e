"""What is known of a machine without having it."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Machine:
    """Some equal devices, by their data sheet.

    Attributes:
      name: as on the command line, with the number or shape.
      platform: "tpu" or "gpu", as jax names it.
      devices: how many jax has on all hosts.
      memory: bytes that a program may use on each.
      bandwidth: of that memory, in bytes a second.
      peaks: dense products of each precision ("bfloat16", "tf32", "float32"), in operations a second and device.
      clock: in Hz, of the cycles in which the compiler estimates; None where it does not.
      description: what the compiler is given.
    """

    name: str
    platform: str
    devices: int
    memory: int
    bandwidth: float
    peaks: Mapping[str, float]
    clock: float | None
    description: str
