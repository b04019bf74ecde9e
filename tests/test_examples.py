"""Every example runs as it stands, and says what it spent."""

import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_says_what_it_spent(example, tmp_path):
    made = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stderr
    accuracy, epsilon = map(float, re.search(r"accuracy ([\d.]+)%, epsilon ([\d.]+) at", made.stdout).groups())
    assert accuracy > 50 and 2.9 < epsilon <= 3.0
    assert len(example.read_text().splitlines()) < 40
