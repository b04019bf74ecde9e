"""Reads a compiled program's text: its kernels, loops and collectives, and the bytes that they move.

The text is XLA's scheduled HLO. A loop's body is written once; what it costs is multiplied by its number of rounds. XLA
writes that number beside the loop, or its condition compares the counter with a constant. Other loops have as many
rounds as the caller says.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence

# What moves nothing: names of values that are there already.
FREE = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast", "after-all", "partition-id", "replica-id"}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", "collective-broadcast")
_SLICES = {"gather", "dynamic-slice"}  # read a part of their first operand

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OP = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\((.*)")
_NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]+\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ROUNDS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BITS = re.compile(r"\d+$")


@dataclasses.dataclass(frozen=True)
class Op:
    """One instruction: its name, the text of its result's shape, its kind, its operands' names, and the rest."""

    name: str
    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str

    def called(self, attribute: str) -> str:
        """The name of a computation that it calls; "" if there is none."""
        found = re.search(rf"{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a part of a program costs on each device.

    Attributes:
      cycles: the compiler's own estimate; None where it gives none.
      bytes: read from and written to the device's main memory by all kernels; what caches save is not seen.
      kernels: how many are started.
    """

    cycles: float | None = None
    bytes: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        known = [cost.cycles for cost in (self, other) if cost.cycles is not None]
        return Cost(sum(known) if known else None, self.bytes + other.bytes, self.kernels + other.kernels)

    def __mul__(self, times: float) -> "Cost":
        cycles = None if self.cycles is None else self.cycles * times
        return Cost(cycles, self.bytes * times, self.kernels * times)


class Program:
    """A compiled program's computations.

    Args:
      text: of `compiled.as_text()`.
    """

    def __init__(self, text: str):
        self.computations: dict[str, list[Op]] = {}
        self.entry, current = "", []
        for line in text.splitlines():
            if head := _HEAD.match(line):
                current = self.computations[head[2]] = []
                self.entry = head[2] if head[1] else self.entry
            elif found := _OP.match(line):
                name, shape, kind, rest = found.groups()
                operands = tuple(_NAME.findall(rest.partition(")")[0]))
                current.append(Op(name, shape, kind, operands, rest))

    def collectives(self) -> int:
        """How many messages between devices are written in the program."""
        kinds = {*COLLECTIVES, *(f"{kind}-start" for kind in COLLECTIVES)}
        return sum(op.kind in kinds for ops in self.computations.values() for op in ops)

    def cost(self, rounds: Sequence[float] = ()) -> tuple[Cost, Cost | None]:
        """What one run of the program costs.

        Args:
          rounds: of the loops whose number of rounds is not written: the outermost, the one within it, and so on. Of
            several at one depth the costliest is meant; the others count once.

        Returns:
          The cost of all, and that of one round of the innermost loop that `rounds` names (None without such a loop).
        """
        return self._cost(self.entry, tuple(rounds))

    @functools.cache  # noqa: B019 (a program is read once and dropped)
    def _cost(self, name: str, rounds: tuple[float, ...]) -> tuple[Cost, Cost | None]:
        total, named = Cost(), []  # loops whose number of rounds is not written
        for op in self.computations[name]:
            if op.kind == "while":
                times = self._rounds(op)
                if times is None:
                    named.append(op)
                else:
                    total += self._round(op, rounds)[0] * times
            elif op.kind == "conditional":
                branches = [self._cost(branch, rounds)[0] for branch in self._branches(op)]
                total += max(branches, key=_weight, default=Cost())
            elif op.kind == "call":
                total += self._cost(op.called("to_apply"), rounds)[0]
            else:
                total += self._own(name, op)
        named.sort(key=lambda op: _weight(self._round(op, ())[0]), reverse=True)
        loop = None
        for op in named[: bool(rounds)]:
            body, inner = self._round(op, rounds[1:])
            total, loop = total + body * rounds[0], inner or body
        for op in named[bool(rounds) :]:
            total += self._round(op, ())[0]
        return total, loop

    def _round(self, loop: Op, rounds: tuple[float, ...]) -> tuple[Cost, Cost | None]:
        """What one round of a loop costs, and one of the innermost loop that `rounds` names."""
        body, inner = self._cost(loop.called("body"), rounds)
        return body + self._cost(loop.called("condition"), ())[0], inner

    def _rounds(self, loop: Op) -> int | None:
        """The number of rounds of a loop, where the program says it."""
        if found := _ROUNDS.search(loop.rest):
            return int(found[1])
        ops = {op.name: op for op in self.computations[loop.called("condition")]}
        last = list(ops.values())[-1]
        if last.kind == "compare" and "direction=LT" in last.rest:
            bound = ops.get(last.operands[1])
            if bound is not None and bound.kind == "constant" and (value := re.match(r"\d+(?=\))", bound.rest)):
                return int(value[0])
        return None

    def _branches(self, op: Op) -> list[str]:
        listed = re.search(r"branch_computations=\{([^}]*)\}", op.rest)
        names = _NAME.findall(listed[1]) if listed else [op.called("true_computation"), op.called("false_computation")]
        return [name for name in names if name]

    def _own(self, computation: str, op: Op) -> Cost:
        if op.kind in FREE or op.kind.endswith("-done"):
            return Cost()
        estimate = _CYCLES.search(op.rest)
        return Cost(int(estimate[1]) if estimate else None, self.bytes_moved(computation, op), 1)

    def bytes_moved(self, computation: str, op: Op) -> float:
        shapes = self._shapes(computation)
        operands = [size(shapes.get(name, "")) for name in op.operands]
        if op.kind.endswith("-start"):  # its result holds the operand's name too
            return sum(operands) + size(_first(op.shape))
        if op.kind in _SLICES:
            return 2 * size(op.shape) + sum(operands[1:])
        if op.kind == "dynamic-update-slice":  # in place
            return 2 * operands[1]
        if op.kind == "fusion" and (called := op.called("calls")) in self.computations:
            read = sum(min(full, self._read(called, i)) for i, full in enumerate(operands))
            return read + min(size(op.shape), self._written(called))
        return sum(operands) + size(op.shape)

    @functools.cache  # noqa: B019
    def _shapes(self, computation: str) -> dict[str, str]:
        return {op.name: op.shape for op in self.computations[computation]}

    @functools.cache  # noqa: B019
    def _read(self, computation: str, number: int) -> float:
        """Bytes that a fused computation reads of its operand of this number."""
        ops = self.computations[computation]
        names = {op.name for op in ops if op.kind == "parameter" and op.rest.startswith(f"{number})")}
        total = 0.0
        for op in ops:
            if op.kind == "bitcast" and names & set(op.operands):
                names.add(op.name)
            elif names & set(op.operands):
                total += self._read_by(op, names)
        return total

    def _read_by(self, op: Op, names: set[str]) -> float:
        whole = op.operands[:1] and op.operands[0] in names and not names & set(op.operands[1:])
        if whole and op.kind in _SLICES:
            return size(op.shape)
        if whole and op.kind == "dynamic-update-slice":
            return 0.0
        if op.kind == "fusion" and (called := op.called("calls")) in self.computations:
            return sum(self._read(called, i) for i, name in enumerate(op.operands) if name in names)
        return math.inf

    @functools.cache  # noqa: B019
    def _written(self, computation: str) -> float:
        """Bytes that a fused computation writes, less what it leaves as it was."""
        ops = {op.name: op for op in self.computations[computation]}
        root = list(ops.values())[-1]
        results = [ops[name] for name in root.operands] if root.kind == "tuple" else [root]
        total = 0.0
        for result in results:
            while result.kind == "bitcast" and result.operands[0] in ops:
                result = ops[result.operands[0]]
            updated = result.kind == "dynamic-update-slice" and ops.get(result.operands[1])
            total += size(updated.shape) if updated else size(result.shape)
        return total


def size(shape: str) -> int:
    """Bytes of an array, or of a tuple of arrays, in a device's main memory, with the padding of its layout.

    What a TPU keeps in its small fast memories (marked S) is not in the main one.

    >>> size("f32[16,8]{1,0}"), size("bf16[16,8]{1,0:T(8,128)(2,1)}"), size("f32[16]{0:T(128)S(1)}")
    (512, 4096, 0)
    """
    return sum(_array_size(*found.groups()) for found in _ARRAY.finditer(shape))


def _array_size(dtype: str, dims: str, layout: str | None) -> int:
    order, _, placing = (layout or "").partition(":")
    bits = _BITS.search(dtype)
    if "S(" in placing or (bits is None and dtype != "pred"):  # "token" and "opaque" are no data
        return 0
    sides = [int(side) for side in dims.split(",") if side]
    tile = re.match(r"T\(([\d,]+)\)", placing)
    if tile and sides:
        minor_first = [int(axis) for axis in order.split(",")]
        for axis, step in zip(minor_first, map(int, reversed(tile[1].split(","))), strict=False):
            sides[axis] = -(-sides[axis] // step) * step
    width = 8 if bits is None else 8 if dtype.startswith("f8") else int(bits[0])
    return math.prod(sides) * width // 8


def _first(shape: str) -> str:
    found = _ARRAY.search(shape)
    return found[0] if found else ""


def _weight(cost: Cost) -> tuple[float, float]:
    return cost.cycles or 0.0, cost.bytes
