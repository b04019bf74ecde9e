"""Compiles a program for a machine that is not here, and reads what the compiler says of it."""

import dataclasses
import re
import time
from typing import Any

import jax
from jax.sharding import Mesh

from privimage_jax.errors import UserError
from privimage_jax.privacy.clipping import PRECISIONS
from privimage_jax.targets import hlo
from privimage_jax.targets.machine import Machine
from privimage_jax.targets.programs import Program
from privimage_jax.training import memory

# Autotuning runs kernels on a GPU, and there is none.
_OPTIONS: dict[str, Any] = {"gpu": {"xla_gpu_autotune_level": 0}, "tpu": None}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What the compiler says of one run of a program; of one device where nothing else is said.

    Attributes:
      peak_bytes: arguments, outputs and temporary values; of a program that the compiler refuses for lack of memory,
        what it says that this needs (None where it does not).
      refused: whether it does.
      collectives: messages between devices that are written in the program.
      kernels, bytes_moved, cycles: see `hlo.Cost`.
      loop_bytes, loop_cycles: of one microbatch in the loop over them; None without such a loop.
      model_flops: floating-point operations over all devices, as useful work: no recomputation, no clipping.
      compile_seconds: that it took here.
    """

    peak_bytes: int | None
    refused: bool
    collectives: int | None
    kernels: float | None
    bytes_moved: float | None
    cycles: float | None
    loop_bytes: float | None
    loop_cycles: float | None
    model_flops: float
    compile_seconds: float


def estimate(program: Program, mesh: Mesh, machine: Machine) -> Estimate:
    """Compiles the program for the mesh's devices.

    Raises:
      UserError: the compiler cannot; the sentence names the operation.
    """
    begin = time.perf_counter()
    try:
        flops = program.flops()
        with jax.default_matmul_precision(PRECISIONS[program.asked]):
            lowered = program.lower(mesh)
        compiled = lowered.compile(compiler_options=_OPTIONS[machine.platform])
    except UserError as error:
        raise UserError(f"{program.title} for {machine.name}: {error}") from error
    except Exception as error:  # of jax, of the compiler, or of the model's own code
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise UserError(_refusal(program, machine, error)) from error
        needed, seconds = memory_needed(str(error)), time.perf_counter() - begin
        return Estimate(needed, True, None, None, None, None, None, None, flops, seconds)
    return read(
        compiled.as_text() or "", memory.program_bytes(compiled), program.rounds, flops, time.perf_counter() - begin
    )


def read(text: str, peak: int | None, rounds: tuple[float, ...], flops: float, seconds: float) -> Estimate:
    """The estimate of a compiled program's text, see `hlo.Program` and `Estimate`."""
    program = hlo.Program(text)
    total, loop = program.cost(rounds)
    if len(rounds) < 2:  # only the loop over microbatches is worth a figure of its own
        loop = None
    return Estimate(
        peak_bytes=peak,
        refused=False,
        collectives=program.collectives(),
        kernels=total.kernels,
        bytes_moved=total.bytes,
        cycles=total.cycles,
        loop_bytes=None if loop is None else loop.bytes,
        loop_cycles=None if loop is None else loop.cycles,
        model_flops=flops,
        compile_seconds=seconds,
    )


def seconds(found: Estimate, machine: Machine, precision: str) -> float | None:
    """The estimated time of one run of a program.

    On TPUs the compiler's cycles over the clock. On GPUs a lower bound: the larger of the useful operations over the
    peak rate and the bytes over the memory's bandwidth. None where the compiler gives no cycles.
    """
    if machine.clock is not None:
        return None if found.cycles is None else found.cycles / machine.clock
    if found.bytes_moved is None:
        return None
    by_flops = found.model_flops / machine.devices / machine.peaks[precision]
    return max(by_flops, found.bytes_moved / machine.bandwidth)


def memory_needed(text: str) -> int | None:
    """The memory that a refusal speaks of, such as "(96.00G) exceeds" or "Used 17.2G of 15.75G"."""
    found = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds", text) or re.search(r"[Uu]sed ([\d.]+)([KMGT]?) of", text)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None


def _refusal(program: Program, machine: Machine, error: Exception) -> str:
    text = " ".join(str(error).split())
    named = re.search(r"primitive '?([\w\-]+)'?|custom[ _]call[ _]target:? ?[=\"']*([\w$.\-]+)", text)
    operation = f"the operation {named[1] or named[2]}" if named else "an operation"
    return (
        f"{program.title} cannot be compiled for {machine.name}, as its compiler does not take {operation} "
        f"({type(error).__name__}: {text[:200].rstrip('. ')}); choose a model without it or another --target."
    )
