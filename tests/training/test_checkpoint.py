import itertools
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from privimage_jax.errors import UserError
from privimage_jax.training.checkpoint import Checkpoints, restore_tree, save_tree
from privimage_jax.training.state import init_state


def state_at(step):
    state = init_state({"w": jnp.full(5, float(step))}, optax.adam(0.1))
    return {**state, "step": jnp.int32(step)}


def flip_a_bit(folder):
    path = max((path for path in (folder / "tree").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_the_newest_is_restored_and_old_ones_are_dropped(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, state_at(step))
    assert checkpoints.steps() == [2, 3]
    restored = checkpoints.restore_latest(state_at(0), pytest.fail)
    assert int(restored["step"]) == 3
    np.testing.assert_array_equal(restored["params"]["w"], 3.0)


def test_a_flipped_bit_falls_back_to_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_at(1))
    checkpoints.save(2, state_at(2))
    flip_a_bit(tmp_path / "2")
    warnings = []
    assert int(checkpoints.restore_latest(state_at(0), warnings.append)["step"]) == 1
    assert "checkpoint" in warnings[0]
    assert "damaged" in warnings[0]


def test_a_clock_that_is_set_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    clock = itertools.cycle((2e9, 1.0, 4e9, 1e9))
    monkeypatch.setattr(time, "time", lambda: next(clock))
    save_tree(tmp_path / "network", {"w": np.ones(3)})
    np.testing.assert_array_equal(restore_tree(tmp_path / "network")["w"], 1)


def test_without_manifest_it_is_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state_at(1))
    (tmp_path / "1" / "manifest.json").unlink()
    assert checkpoints.restore_latest(state_at(0), lambda _: None) is None


def test_a_damaged_tree_is_named(tmp_path):
    save_tree(tmp_path / "network", {"w": np.ones(3)})
    np.testing.assert_array_equal(restore_tree(tmp_path / "network")["w"], 1)
    flip_a_bit(tmp_path / "network")
    with pytest.raises(UserError, match="network is missing or damaged"):
        restore_tree(tmp_path / "network")
