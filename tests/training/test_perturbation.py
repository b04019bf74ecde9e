"""Gradients at perturbed weights: hand computations on quadratics, and what pre-training makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import run, tiny_config
from small_models import use_small_models

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.errors import UserError
from privimage_jax.stages.pretrain import restore_tree
from privimage_jax.training import perturbation
from privimage_jax.training.mesh import make_mesh

CURVES = {"a": jnp.array([1.0, 2.0, 4.0]), "b": jnp.array([[3.0]]), "zero": jnp.array([5.0])}
PARAMS = {"a": jnp.array([2.0, -1.0, 0.5]), "b": jnp.array([[-3.0]]), "zero": jnp.array([0.0])}


def quadratic(params):
    """1/2 sum of c w^2, whose gradient is c w."""
    return 0.5 * sum(jnp.sum(CURVES[name] * params[name] ** 2) for name in CURVES)


def by_hand(gamma, norm):
    """In float64: c (w + Delta)."""
    weights = {name: np.asarray(leaf, np.float64) for name, leaf in PARAMS.items()}
    ascent = {name: np.asarray(CURVES[name]) * weights[name] for name in weights}
    whole = np.sqrt(sum(np.sum(leaf**2) for leaf in ascent.values()))
    moved = {}
    for name, g in ascent.items():
        own = np.linalg.norm(weights[name]) / max(np.linalg.norm(g), 1e-300)
        moved[name] = weights[name] + gamma * g * (1 / whole if norm == "global" else own)
    return {name: np.asarray(CURVES[name]) * moved[name] for name in moved}


@pytest.mark.parametrize("norm", ["layer", "global"])
@pytest.mark.parametrize("gamma", [0.05, 0.2, 3.0])
def test_the_gradient_of_a_quadratic_is_that_at_the_moved_weights(gamma, norm):
    value, gradient = jax.jit(perturbation.value_and_grad(quadratic, gamma, norm))(PARAMS)
    assert value == quadratic(PARAMS)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), gradient, by_hand(gamma, norm))


@settings(deadline=None)
@given(st.floats(0.01, 2.0), st.integers(0, 2**32 - 1))
def test_how_far_weights_are_moved(gamma, seed):
    """Along the gradient: as a whole by gamma, or each array by gamma times its own norm."""
    rng = np.random.default_rng(seed)
    params, gradient = ({"a": rng.normal(size=3), "b": rng.normal(size=(2, 2))} for _ in range(2))
    whole = jax.tree.leaves(perturbation.perturbation(params, gradient, gamma, "global"))
    assert np.sqrt(sum(jnp.sum(leaf**2) for leaf in whole)) == pytest.approx(gamma, rel=1e-5)
    each = perturbation.perturbation(params, gradient, gamma, "layer")
    for name, weights in params.items():
        assert jnp.sqrt(jnp.sum(each[name] ** 2)) == pytest.approx(gamma * np.linalg.norm(weights), rel=1e-5)
        assert jnp.sum(each[name] * gradient[name]) > 0


@pytest.mark.parametrize("norm", ["layer", "global"])
def test_where_there_is_no_slope_nothing_moves(norm):
    _, gradient = perturbation.value_and_grad(lambda params: quadratic(params) * 0.0, 0.5, norm)(PARAMS)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def lowered(config):
    """The compiled program of a step of pre-training, as text."""
    generator = generators.build(config, 3)
    update = generator.public_update(make_mesh(jax.devices()[:1]))
    state = jax.eval_shape(lambda key: generator.public_state(generator.init(key)), jax.random.key(0))
    batch = {"image": jax.ShapeDtypeStruct((4, 8, 8, 1), np.uint8), "label": jax.ShapeDtypeStruct((4,), np.int32)}
    return jax.jit(update).lower(state, batch, jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))).as_text()


def test_off_is_the_program_of_the_plain_gradient(tmp_path, monkeypatch):
    config = use_small_models(tiny_config(tmp_path))
    off = lowered(config)
    config.pretrain.perturbation = 0.1
    assert lowered(config) != off
    monkeypatch.setattr(perturbation, "value_and_grad", lambda loss, gamma, norm: jax.value_and_grad(loss))
    assert lowered(config) == off


def test_pre_training_is_perturbed(tmp_path):
    """Through the stage: other parameters for each way, all of them finite."""
    made = []
    for gamma, norm in ((0.0, "layer"), (0.1, "layer"), (0.1, "global")):
        config = use_small_models(tiny_config(tmp_path))
        config.selection.method, config.evaluate.enabled = "random", False
        config.pretrain.perturbation, config.pretrain.perturbation_norm = gamma, norm
        root = tmp_path / f"{gamma}{norm}"
        run(config, root, "pretrain")
        leaves = jax.tree.leaves(restore_tree(root / "internal" / "pretrain" / "params"))
        made.append(np.concatenate([np.ravel(leaf) for leaf in leaves]))
    assert np.isfinite(made).all() and len(np.unique(made, axis=0)) == 3


def test_a_perturbation_of_nothing_is_refused(tmp_path):
    config = tiny_config(tmp_path)
    config.pretrain.perturbation, config.pretrain.steps = 0.2, 0
    with pytest.raises(UserError, match=r"config\.pretrain\.perturbation=0\.2 has no effect with config\.pretrain\.st"):
        configs.check(config)
    config.warmup.enabled = True
    configs.check(config)
