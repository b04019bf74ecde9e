"""Every example runs as it stands, and says what it spent."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import quick

EXAMPLES = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("*.py"))
ENVIRONMENT = {**os.environ, "XLA_FLAGS": " ".join(quick.FLAGS)}  # and one device, as several are several times slower


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_says_what_it_spent(example, tmp_path):
    command = [sys.executable, example]
    made = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    accuracy, epsilon = map(float, re.search(r"accuracy ([\d.]+)%, epsilon ([\d.]+) at", made.stdout).groups())
    assert accuracy > 50 and 2.9 < epsilon <= 3.0
    assert len(example.read_text().splitlines()) < 40
