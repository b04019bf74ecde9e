"""The checks of a first light: a sound device passes, and what they are for is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from small_models import SmallDenoiser

from privimage_jax.configs import base
from privimage_jax.light import clipping_checks, problem, step_checks
from privimage_jax.privacy import clipping, summation

SMALL = problem.Problem(SmallDenoiser(3, 1), (4, 4, 1))


def test_clipping_passes(monkeypatch):
    monkeypatch.setattr(clipping, "PRECISIONS", {"float32": "highest"})
    rows = list(clipping_checks.run(SMALL))
    assert len(rows) == 2 + 2 + 1 and all(row["ok"] for row in rows), rows
    bounds = [row["value"] for row in rows if row["claim"] == clipping_checks.BOUND]
    assert all(0.999 < value <= 1 for value in bounds)
    monkeypatch.setattr(summation, "two_sum", lambda a, b: (a + b, 0 * a))  # as a compiler might simplify it
    assert [row["claim"] for row in clipping_checks.run(SMALL) if not row["ok"]] == [clipping_checks.SUM]


@pytest.mark.parametrize(
    ("method", "factor", "failing"),
    [("bookkeeping", 1.001, 3), ("bookkeeping", 0.99, 2), ("vmap", 1.001, 3), ("bookkeeping", float("nan"), 3)],
)
def test_a_method_that_goes_wrong_is_found(monkeypatch, method, factor, failing):
    """One that clips too little, one that disagrees, and one that returns nonsense."""

    def pretended(loss, clip_norm, its_method, precision):
        wrong = (1 - clipping.ETA) * (factor if its_method == method else 1.0)

        def fn(params, batch, keys, mask):
            total = jax.tree.map(np.zeros_like, params)
            leaves, structure = jax.tree.flatten(total)
            leaves[0].flat[0] = wrong * clip_norm * np.sum(mask)
            return jax.tree.unflatten(structure, leaves), wrong * np.ones(len(mask)), np.ones(len(mask))

        return fn

    monkeypatch.setattr(clipping, "PRECISIONS", {"float32": "highest"})
    monkeypatch.setattr(clipping, "clipped_grad", pretended)
    monkeypatch.setattr(clipping_checks, "compiled", lambda fn: fn)
    rows = list(clipping_checks.run(SMALL))
    assert sum(not row["ok"] for row in rows) == failing, rows


def test_devices_agree_and_one_that_does_not_is_found(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    meshes = [step_checks.make_mesh(jax.devices()[:count]) for count in (1, 2)]
    monkeypatch.setattr(step_checks, "make_mesh", lambda devices=None: meshes[devices is None])
    rows = list(step_checks.devices(SMALL))
    assert len(rows) == 3 and all(row["ok"] for row in rows), rows
    norms = step_checks.gradient_norms

    def drifting(its, mesh):
        return norms(its, mesh) * (1 + 1e-4 * (mesh.size - 1))

    monkeypatch.setattr(step_checks, "gradient_norms", drifting)
    assert not next(step_checks.devices(SMALL))["ok"]
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert [row["kind"] for row in step_checks.devices(SMALL)] == ["note"]


def test_states_that_differ_are_found(monkeypatch, tmp_path):
    """Without orbax the state in the middle is kept as plain arrays."""
    found, kept = step_checks.importlib.util.find_spec, tmp_path / "middle"
    monkeypatch.setattr(step_checks.importlib.util, "find_spec", lambda name: None if name == "orbax" else found(name))
    drift = iter(np.arange(100.0))

    def make_run(its, precision):
        def run(state, begin, end):
            return {"x": state["x"] + (end - begin) + wrong * next(drift)}

        return run, {"x": np.zeros(2)}

    monkeypatch.setattr(step_checks, "make_run", make_run)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    for wrong in (0.0, 1.0):  # noqa: B007 (used by `make_run`)
        ok = not wrong
        (first,) = step_checks.replay(SMALL, "float32", kept)
        assert first["ok"] == ok
        rows = list(step_checks.resume(SMALL, "float32", kept, first["digest"]))
        assert [row["ok"] for row in rows] == [ok] * 3


def test_the_network_is_the_configs_own_where_that_is_small():
    config = base.get_config()
    config.model.name, config.model.kwargs = "small_models:SmallDenoiser", ConfigDict()
    config.data.image_size, config.data.channels, config.data.class_names = 4, 1, ("a", "b")
    own = problem.of(config)
    assert own.model == SmallDenoiser(2, 1) and own.shape == (4, 4, 1)
    large = problem.of(base.get_config())
    assert type(large.model).__name__ == "UNet" and large.shape == (8, 8, 3)
    kinds = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(large.params)}
    assert kinds == {"bias", "embedding", "kernel", "scale"}
    assert large.loss("bfloat16") is not None and all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(large.params)
    )


def test_distance():
    tree = {"a": np.float32([3, 0]), "b": np.float32([4])}
    assert problem.distance(jax.tree.map(lambda leaf: 1.1 * leaf, tree), tree) == pytest.approx(0.1, rel=1e-6)
