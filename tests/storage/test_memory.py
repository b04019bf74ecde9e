import gzip
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from privimage_jax.data import load
from privimage_jax.errors import UserError
from privimage_jax.storage import memory, reading

READ_WITH_LITTLE = """
import resource, sys
from privimage_jax.data import loading
from privimage_jax.data.sources import folder, idx, npz
from privimage_jax.errors import UserError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (200 << 20),) * 2)
if sys.argv[3:]:
    from privimage_jax.storage import memory
    honest, answers = memory.at_hand, [1 << 40]
    memory.at_hand = lambda: answers.pop() if answers else honest()
try:
    loading.load({"source": sys.argv[1], "path": sys.argv[2], "test_fraction": 0.0}, "train", 8, 1, None)
except UserError as error:
    print(error)
"""


def told_with_little(source, path, *trusting):
    """What is said of a set in a process with 200 MB more than nothing; `trusting` = it asks for all the same."""
    program = [sys.executable, "-c", READ_WITH_LITTLE, source, str(path), *trusting]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("trusting", [(), ("trusting",)])
def test_too_large_an_array_is_told_with_its_size(tmp_path, trusting):
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((300, 1000, 1000), np.uint8), labels=np.zeros(300, int))
    told = told_with_little("npz", tmp_path / "set.npz", *trusting)
    assert "set.npz: its array 'images' needs 300,000,000 bytes of memory, and " in told
    assert told.endswith("are at hand; run it where there is more, or free some.\n") and "damaged" not in told


def test_too_large_a_file_of_mnists_kind_is_told_with_its_size(tmp_path):
    sides = (300, 1000, 1000)
    for name, shape in (("images-idx3", sides), ("labels-idx1", sides[:1])):
        content = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + bytes(int(np.prod(shape)))
        (tmp_path / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(content, 1))
    told = told_with_little("idx", tmp_path)
    assert "train-images-idx3-ubyte.gz needs 300,000,000 bytes of memory, and " in told and "damaged" not in told


@pytest.mark.parametrize("trusting", [(), ("trusting",)])
def test_too_large_a_picture_is_told_with_its_size(tmp_path, trusting):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (9000, 9000)).save(tmp_path / "a" / "0.png", compress_level=1)
    told = told_with_little("folder", tmp_path, *trusting)
    assert "0.png of 9000×9000 pixels needs 648,000,000 bytes of memory, and " in told and "damaged" not in told


@pytest.mark.parametrize(
    "ask, says",
    [
        (lambda: np.empty((1 << 50, 3), np.int32), f"reading it needs {12 << 50:,} bytes of memory, and 5 are at hand"),
        (lambda: bytes(1 << 60), "reading it needs more memory than the 5 bytes at hand"),
    ],
)
def test_any_reader_that_runs_out_of_memory(monkeypatch, ask, says):
    monkeypatch.setattr(memory, "at_hand", lambda: 5)
    with pytest.raises(UserError, match=says), reading.user_errors("it", "repair it"):
        ask()


def test_threads_that_cannot_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "threading.Thread.start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start new thread"))
    )
    np.savez(tmp_path / "set.npz", images=np.zeros((3, 8, 8), np.uint8), labels=np.zeros(3, int))
    with pytest.raises(UserError, match="config.data: decoding images by .* threads needs more memory than the"):
        load({"source": "npz", "path": str(tmp_path / "set.npz")}, "train", 8, 1, None)


def test_the_limits_of_containers_and_jobs_count(tmp_path):
    job = tmp_path / "slurm" / "job_1"
    job.mkdir(parents=True)

    def limit(group, most, held, cached):
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text(f"{held}\n")
        (group / "memory.stat").write_text(f"anon 600\ninactive_file {cached}\n")

    def at_hand():
        return memory.of_container(tmp_path, "0::/slurm/job_1\n")

    assert at_hand() > 1 << 50  # no such files
    limit(job, "max", 700, 50)
    assert at_hand() > 1 << 50
    limit(job.parent, 1000, 700, 50)
    assert at_hand() == 350
    limit(job, 900, 700, 0)
    assert at_hand() == 200
    limit(tmp_path, 100, 0, 0)
    assert at_hand() == 100


def test_the_limit_of_a_container_of_the_first_kind_counts(tmp_path):
    group = tmp_path / "memory" / "docker"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("1000\n")
    (group / "memory.usage_in_bytes").write_text("200\n")
    (group / "memory.stat").write_text("total_inactive_file 30\n")
    assert memory.of_container(tmp_path, "5:cpu,cpuacct:/x\n4:memory:/docker\n") == 830
    assert memory.of_container(tmp_path, "") > 1 << 50


def test_something_is_at_hand():
    assert 1 << 20 < memory.at_hand() < 1 << 50
