"""Starts jax, as every command does that computes."""

import os
import time
import warnings
from pathlib import Path

from privimage_jax.cluster import distributed, processes
from privimage_jax.errors import UserError, one_line
from privimage_jax.targets import topologies

XLA_FLAGS = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",  # halves the memory and the spread of times on CPUs
    "--xla_gpu_exclude_nondeterministic_ops=true",  # a replayed DP-SGD step must be bit-identical, see docs/recovery.md
)


def quieten() -> None:
    """What libraries that read images need to keep silent, also where jax does not start."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    warnings.filterwarnings("ignore", module="PIL")  # of damaged tags in pictures that can be read all the same


def start(cache_dir: Path | None = None, place: distributed.Place | None = None) -> None:
    """Sets what jax needs, starts it and, of several processes, connects the devices; a user's own XLA_FLAGS win.

    Compiled programs are kept in `cache_dir`. On a GPU that is also how a replay gets the same kernels: XLA chooses
    them by measuring, so that another compilation may choose others.

    Raises:
      UserError: if there is no device, or processes do not find each other or cannot connect their devices.
    """
    os.environ["XLA_FLAGS"] = " ".join([*XLA_FLAGS, os.environ.get("XLA_FLAGS", "")])
    quieten()
    topologies.quieten_libtpu()
    if place is not None:
        distributed.start(place)
    import jax

    if cache_dir is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))
        jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")
    warnings.filterwarnings("ignore", message=".*persistent compilation cache")  # it only saves time
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where a platform that is asked for has no device
        asked = os.environ.get("JAX_PLATFORMS", "")
        wanted = f" for JAX_PLATFORMS={asked}" if asked else ""
        reason = one_line((str(error).splitlines() or ["none is there, or the packages for it are not installed"])[0])
        raise UserError(
            f"jax finds no device{wanted} ({reason}); correct JAX_PLATFORMS, or install jax for the devices of this "
            "machine, as by `source launch/environment.sh cuda` (or tpu)."
        ) from None
    if jax.process_count() > 1:
        _connect()
    if jax.default_backend() == "gpu":
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # no program is too small to be kept


def _connect() -> None:
    """Adds up a number over all devices, which are connected by that: now, while all processes are here.

    gloo makes the connections with the first sum and waits for 30 s, and one process may compile longer than another.
    """
    import jax
    import numpy as np

    from privimage_jax.training.mesh import batch_sharded, make_mesh, place, replicated

    mesh = make_mesh()
    ones = place(np.ones(mesh.size, np.float32), batch_sharded(mesh))
    try:
        jax.block_until_ready(jax.jit(lambda x: x.sum(), out_shardings=replicated(mesh))(ones))
    except RuntimeError as error:
        time.sleep(processes.GRACE_SECONDS)  # where another process has gone, its end is told meanwhile
        raise UserError(
            f"the devices of the {jax.process_count()} processes cannot be connected ({one_line(str(error))}); let "
            "their hosts reach each other on every port, and give the same command again."
        ) from None
