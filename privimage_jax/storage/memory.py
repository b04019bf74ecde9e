"""How much memory a process may still take, and what is said when it is too little."""

import math
import os
import resource
from pathlib import Path

from privimage_jax.errors import UserError

_CGROUP, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_SECOND = ("memory.max", "memory.current", "inactive_file")
_FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_UNLIMITED = 1 << 60  # what kernels write where there is no limit


def at_hand() -> int:
    """Bytes that this process may still take: by the machine, its container and its own limits, whichever is least."""
    groups = _OWN_GROUPS.read_text() if _OWN_GROUPS.exists() else ""
    return max(0, min(_of_machine(), of_container(_CGROUP, groups), _of_process()))


def shortage(what: str, error: MemoryError | None = None, needed: int = 0) -> UserError:
    """The error to raise where memory is lacking.

    Args:
      what: needs the memory; begins the sentence.
      error: what was raised; NumPy's own tells how much was asked for.
      needed: bytes, if known.
    """
    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    if not needed and shape is not None and dtype is not None:
        needed = math.prod(shape) * dtype.itemsize
    remedy = "run it where there is more, or free some"
    if not needed:
        return UserError(f"{what} needs more memory than the {at_hand():,} bytes at hand; {remedy}.")
    return UserError(f"{what} needs {needed:,} bytes of memory, and {at_hand():,} are at hand; {remedy}.")


def _of_machine() -> int:
    """What the kernel would give away without swapping."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def of_container(root: Path, groups: str) -> int:
    """The limits of the control groups of this process less what they hold and cannot drop, the least of all.

    Args:
      root: of the file system of control groups.
      groups: the text of /proc/self/cgroup. A scheduler of jobs sets limits on groups within groups.
    """
    least = _UNLIMITED
    for line in groups.splitlines():
        number, controllers, path = line.split(":", 2)
        second = number == "0"  # the second version has one tree; of the first's, one is for memory
        if not second and "memory" not in controllers.split(","):
            continue
        base = root if second else root / "memory"
        folder = base / path.lstrip("/")
        for group in [folder, *folder.parents]:
            if group.is_relative_to(base):
                least = min(least, _of_group(group, *(_SECOND if second else _FIRST)))
    return least


def _of_group(folder: Path, limit: str, used: str, cached: str) -> int:
    try:
        allowed = int((folder / limit).read_text())  # "max" is no number, and no limit
        held = int((folder / used).read_text())
        fields = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return allowed - held + int(fields.get(cached, 0))
    except (OSError, ValueError):
        return _UNLIMITED


def _of_process() -> int:
    """The limit of the address space (`ulimit -v`) less what is in use."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return _UNLIMITED
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return limit
    return limit - pages * os.sysconf("SC_PAGE_SIZE")
