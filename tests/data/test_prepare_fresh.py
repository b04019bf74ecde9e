"""The extra [prepare], installed as the documentation says: `pytest -m install`, as the whole suite leaves it out."""

import os
import pathlib
import subprocess
import sys
import tempfile

import pytest
from catalogue import own_sets
from prepared import picture

from privimage_jax.data import load

ROOT = pathlib.Path(own_sets.__file__).parents[3]


@pytest.mark.install
def test_a_fresh_environment_prepares_a_set(tmp_path):
    command = f"source launch/environment.sh prepare && python tests/support/prepare_both.py {tmp_path}"
    with tempfile.TemporaryDirectory() as venv:  # pytest would keep it for a while
        environment = {**os.environ, "PYTHON": sys.executable, "PRIVIMAGE_VENV": venv}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name = "own_pictures/pixels"
    assert [line for line in done.stdout.splitlines() if line.startswith("prepared")] == [
        f"prepared {tmp_path}/{part}/{name}/1.0.0" for part in ("old", "new")
    ]
    old, new = (load({"name": name, "data_dir": str(tmp_path / part)}, "train", 8, 3, None) for part in ("old", "new"))
    assert old.digest() == new.digest()
    drawn = [(bytes(picture(i)), i % 3) for i in range(30)]  # TFDS shuffles them
    assert sorted(zip(map(bytes, new.images), new.labels.tolist(), strict=True)) == sorted(drawn)
