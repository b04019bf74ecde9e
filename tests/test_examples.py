"""Every example runs as it stands, and says what it spent."""

import pathlib
import re
import runpy

import pytest

EXAMPLES = sorted((pathlib.Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs_and_says_what_it_spent(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    accuracy, epsilon = map(float, re.search(r"accuracy ([\d.]+)%, epsilon ([\d.]+) at", said).groups())
    assert accuracy > 50 and 2.9 < epsilon <= 3.0
    assert len(example.read_text().splitlines()) < 40
