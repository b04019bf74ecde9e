"""The accuracy of a classifier that learnt from real images is found once, and again where its file is damaged."""

import json

import pytest

from privimage_jax.metrics import real_accuracy


def made() -> float:
    return 0.75


def fails() -> float:
    raise AssertionError("it is known")


def test_it_is_found_once(tmp_path):
    assert real_accuracy.load_or_make(tmp_path, ["a", 1], made) == 0.75
    assert real_accuracy.load_or_make(tmp_path, ["a", 1], fails) == 0.75
    (entry,) = tmp_path.glob("*.json")
    assert json.loads(entry.read_text()) == {"accuracy": 0.75}
    assert entry.stat().st_mode & 0o077 == 0


def test_anything_else_is_another(tmp_path):
    real_accuracy.load_or_make(tmp_path, ["a", 1], made)
    assert real_accuracy.load_or_make(tmp_path, ["a", 2], lambda: 0.5) == 0.5


@pytest.mark.parametrize(
    "damage", ["", "{}", "[0.5]", '{"accuracy": NaN}', '{"accuracy": 2.0}', '{"accuracy": "high"}']
)
def test_what_is_damaged_is_made_again(tmp_path, damage):
    real_accuracy.load_or_make(tmp_path, ["a", 1], made)
    (entry,) = tmp_path.glob("*.json")
    entry.write_text(damage)
    assert real_accuracy.load_or_make(tmp_path, ["a", 1], lambda: 0.5) == 0.5
    assert json.loads(entry.read_text()) == {"accuracy": 0.5}
