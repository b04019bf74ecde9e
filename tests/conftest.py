"""Shared test set-up: the XLA flag the program uses, eight simulated devices and one compilation cache."""

import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_cpu_enable_concurrency_optimized_scheduler=false --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("MPLBACKEND", "Agg")

import jax  # noqa: E402
import pytest  # noqa: E402
from commands import caller, write_config  # noqa: E402

CACHE = os.path.join(tempfile.gettempdir(), f"privimage-test-cache-{os.getuid()}")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture
def privimage(capsys, monkeypatch):
    """`privimage("run", "--config", …) -> Result`: the command line in this process."""
    return caller(capsys, monkeypatch)


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """The config file of the smallest experiment, beside its image sets."""
    folder = tmp_path_factory.mktemp("config")
    return write_config(folder, folder)
