"""GPUs by name, and the descriptions from which XLA compiles for them.

XLA's CUDA compiler needs no GPU, but a text of the protocol buffer `GpuTargetConfigProto` that describes one. A user
may bring one for a GPU that is not listed.

Sources: NVIDIA's data sheets of each GPU (memory, bandwidth, dense peak rates, number of multiprocessors, boost clock),
and the table "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path

from privimage_jax.errors import UserError
from privimage_jax.targets.machine import Machine

_SHARE = 0.75  # of a GPU's memory, which jax takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
_PER_HOST = 8  # GPUs in one machine at most


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A data sheet.

    Attributes:
      title: as the driver names it.
      capability: of CUDA, such as (9, 0).
      cores: streaming multiprocessors.
      memory: in 10^9 bytes.
      bandwidth: of that memory, in 10^9 bytes a second.
      cache: of level 2, in 2^20 bytes.
      clock: boost, in GHz.
      peaks: of dense products, in 10^12 operations a second, for bfloat16, tf32 and float32.
    """

    title: str
    capability: tuple[int, int]
    cores: int
    memory: float
    bandwidth: float
    cache: int
    clock: float
    peaks: tuple[float, float, float]


GPUS = {
    "a10": Gpu("NVIDIA A10", (8, 6), 72, 24, 600, 6, 1.695, (125, 62.5, 31.2)),
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0), 108, 80, 2039, 40, 1.41, (312, 156, 19.5)),
    "a100-40gb": Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 108, 40, 1555, 40, 1.41, (312, 156, 19.5)),
    "b200": Gpu("NVIDIA B200", (10, 0), 148, 180, 7700, 126, 1.965, (2250, 1125, 75)),
    "h100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 80, 3352, 50, 1.98, (989, 494.5, 67)),
    "h200": Gpu("NVIDIA H200", (9, 0), 132, 141, 4800, 50, 1.98, (989, 494.5, 67)),
    "l4": Gpu("NVIDIA L4", (8, 9), 58, 24, 300, 48, 2.04, (121, 60.5, 30.3)),
    "l40s": Gpu("NVIDIA L40S", (8, 9), 142, 48, 864, 96, 2.52, (362, 183, 91.6)),
}

# Of each multiprocessor, by compute capability: float32 units, threads, shared memory in KiB (a block may have one
# less), and dense bfloat16 operations in one clock (TF32: half of these).
_CAPABILITIES = {
    (8, 0): (64, 2048, 164, 2048),
    (8, 6): (128, 1536, 100, 1024),
    (8, 9): (128, 1536, 100, 1024),
    (9, 0): (128, 2048, 228, 4096),
    (10, 0): (128, 2048, 228, 8192),
}


def named(name: str, count: int) -> Machine:
    """`count` GPUs of a name in `GPUS`."""
    gpu = GPUS[name]
    peaks = {key: rate * 1e12 for key, rate in zip(("bfloat16", "tf32", "float32"), gpu.peaks, strict=True)}
    return _machine(f"{name}:{count}", count, gpu.memory * 1e9, gpu.bandwidth * 1e9, peaks, describe(gpu))


def described(path: str, count: int) -> Machine:
    """`count` GPUs of the kind that a file describes.

    Raises:
      UserError: the file cannot be read, or lacks a field.
    """
    try:
        text = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"--target={path} cannot be read ({reason}); give a file with a GPU's description.") from None
    fields = ("device_memory_size", "memory_bandwidth", "core_count", "fpus_per_core", "clock_rate_ghz", "major")
    values = {}
    for field in (*fields, "minor"):
        found = re.search(rf"\b{field}\s*:\s*([\d.]+)", text)
        if not found and field != "minor":  # a text leaves out what is 0
            raise UserError(
                f"--target={path} says no {field}; give a GpuTargetConfigProto as text, as docs/forecast.md shows one."
            )
        values[field] = float(found[1]) if found else 0.0
    rate = values["core_count"] * values["clock_rate_ghz"] * 1e9  # of all multiprocessors together, in clocks a second
    plain = 2 * values["fpus_per_core"]
    known = _CAPABILITIES.get((int(values["major"]), int(values["minor"])))
    dense = known[3] if known else plain
    peaks = {"bfloat16": rate * dense, "tf32": rate * max(dense / 2, plain), "float32": rate * plain}
    return _machine(f"{path}:{count}", count, values["device_memory_size"], values["memory_bandwidth"], peaks, text)


def _machine(
    name: str, count: int, memory: float, bandwidth: float, peaks: Mapping[str, float], description: str
) -> Machine:
    if not (1 <= count <= _PER_HOST or count % _PER_HOST == 0 and count):
        raise UserError(
            f"--target={name} has {count} GPUs; give 1 to {_PER_HOST} of them, or a multiple of {_PER_HOST}."
        )
    return Machine(name, "gpu", count, int(memory * _SHARE), bandwidth, peaks, None, description)


def layout(count: int) -> str:
    """How XLA writes so many GPUs: slices x hosts x GPUs of a host."""
    return f"1x1x{count}" if count <= _PER_HOST else f"1x{count // _PER_HOST}x{_PER_HOST}"


def describe(gpu: Gpu) -> str:
    """The text from which XLA compiles for this GPU."""
    units, threads, shared, _ = _CAPABILITIES[gpu.capability]
    major, minor = gpu.capability
    return f"""gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared * 1024}
  threads_per_core_limit: {threads}
  core_count: {gpu.cores}
  fpus_per_core: {units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {round(gpu.bandwidth * 1e9)}
  l2_cache_size: {gpu.cache << 20}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {round(gpu.memory * 1e9)}
  shared_memory_per_block_optin: {(shared - 1) * 1024}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 }}
device_description_str: "{gpu.title}"
"""
