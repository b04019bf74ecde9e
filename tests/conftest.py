"""Shared test set-up: jax's flags and eight simulated devices, and what makes tests quick: see CONTRIBUTING.

All is in the environment, so that the processes that tests start have it too. What you have set yourself stays.
"""

import os
import tempfile

import quick

MEMORY, ENOUGH = "/dev/shm", 2**31  # bytes
FLAGS = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",  # as the program has it
    "--xla_force_host_platform_device_count=8",
    *quick.FLAGS,
)
# Files of tests that take longest, which come first: else one process could be left with one of them in the end.
LONGEST = {
    *("test_crashes.py", "test_distributed.py", "test_examples.py"),
    *("test_forecast.py", "test_fuzz.py", "test_tpu_programs.py"),
}
CACHE = os.path.join(tempfile.gettempdir(), f"privimage-test-cache-{os.getuid()}")


def has_room(folder: str) -> bool:
    """Whether a folder is there that takes the tests' files, of which some are programs."""
    if not os.path.isdir(folder):
        return False
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize > ENOUGH and not system.f_flag & os.ST_NOEXEC


os.environ["XLA_FLAGS"] = " ".join([*FLAGS, os.environ.get("XLA_FLAGS", "")])  # the last ones win
for name, value in {
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": CACHE,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # small programs, taken together, take longest
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(name, value)
if "TMPDIR" not in os.environ and has_room(MEMORY):
    os.environ["TMPDIR"] = tempfile.tempdir = MEMORY  # runs write and delete many files: no disk to wait for

quick.collect_rarely()

import pytest  # noqa: E402
from alike import keep_programs  # noqa: E402
from commands import caller, write_config  # noqa: E402


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)  # the order within is kept


def pytest_collection_finish():
    """All modules are imported now, and stay."""
    quick.collect_rarely()


@pytest.fixture
def privimage(capsys, monkeypatch):
    """`privimage("run", "--config", …) -> Result`: the command line in this process."""
    return caller(capsys, monkeypatch)


@pytest.fixture(scope="module")
def programs_kept():
    """Programs that are alike are compiled once; for tests that change nothing of what is traced."""
    with pytest.MonkeyPatch.context() as patch:
        keep_programs(patch)
        yield


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    """The config file of the smallest experiment, beside its image sets."""
    folder = tmp_path_factory.mktemp("config")
    return write_config(folder, folder)
