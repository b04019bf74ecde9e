"""What is counted through a network is counted of each image alone, whatever the network does with a batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import bright_among_dull, check_counts_of_a_network
from mixing_networks import MIXING, REFUSED, Normalised
from pipelines import run, tiny_config

from privimage_jax.errors import UserError
from privimage_jax.metrics import features
from privimage_jax.metrics.features import extract, forward
from privimage_jax.models import registry
from privimage_jax.privacy import noise, people
from privimage_jax.run import noisy_counts
from privimage_jax.run.inputs import make_inputs
from privimage_jax.stages import choose_sampler, query

N, SHAPE, SEMANTICS, CLASSES, K1 = 40, (8, 8, 1), 20, 3, 3
LABELS = (np.arange(N) % CLASSES).astype(np.int32)


@pytest.mark.parametrize("network", MIXING, ids=lambda network: network.__name__)
def test_a_record_struck_out_moves_the_querys_counts_by_its_sensitivity(network):
    check_counts_of_a_network(network(SEMANTICS), K1)


@pytest.mark.parametrize("network", MIXING, ids=lambda network: network.__name__)
def test_a_record_struck_out_moves_the_samplers_scores_by_one_at_most(network):
    module = network(SEMANTICS)
    classify = forward(module, registry.init_classifier(module, jax.random.key(0), SHAPE), method="__call__")
    labels = np.arange(N) % SEMANTICS
    for images, neighbour, row in bright_among_dull(N):
        whole = choose_sampler.agreement(extract(classify, images), labels)
        rest = choose_sampler.agreement(np.delete(extract(classify, neighbour), row, 0), np.delete(labels, row))
        assert whole - rest in (0, 1)


@pytest.mark.parametrize("network", MIXING, ids=lambda network: network.__name__)
def test_the_check_fails_where_a_network_sees_the_batch(network, monkeypatch):
    """For each of them, so that the tests above can fail."""

    def whole(module, variables, method):
        return jax.tree_util.Partial(functools.partial(module.apply, train=False, method=method), variables)

    monkeypatch.setattr(features, "forward", whole)
    with pytest.raises(AssertionError, match="moves the counts by"):
        check_counts_of_a_network(network(SEMANTICS), K1)


def test_a_network_that_keeps_images_apart_counts_as_it_always_did():
    """BatchNorm in inference among its layers."""
    module, images = Normalised(SEMANTICS), np.random.default_rng(0).integers(0, 256, (N, *SHAPE), np.uint8)
    variables = registry.init_classifier(module, jax.random.key(0), SHAPE)
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    _, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
    variables = {**variables, **moved}  # statistics that are not those of an image alone
    whole = np.asarray(module.apply(variables, x, train=False))
    alone = extract(forward(module, variables, method="__call__"), images)
    np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-6)
    counts = [query.count_semantics(logits, LABELS, CLASSES, K1) for logits in (whole, alone)]
    np.testing.assert_array_equal(*counts)


def test_a_convolution_is_one_call_for_the_whole_batch():
    """Mapped over single images it would be tens of times slower, were it grouped or in a loop."""
    module = Normalised(SEMANTICS)
    classify = forward(module, registry.init_classifier(module, jax.random.key(0), SHAPE), method="__call__")
    traced = jax.make_jaxpr(classify)(jnp.zeros((N, *SHAPE)))
    convolutions = [equation for equation in traced.jaxpr.eqns if equation.primitive.name == "conv_general_dilated"]
    assert [(each.invars[0].aval.shape, each.params["feature_group_count"]) for each in convolutions] == [
        ((N, *SHAPE), 1)
    ]


@pytest.mark.parametrize(("operation", "module"), REFUSED.items(), ids=REFUSED)
def test_an_operation_that_may_be_handed_a_batch_is_refused(operation, module):
    variables = registry.init_classifier(module(SEMANTICS), jax.random.key(0), SHAPE)
    classify = forward(module(SEMANTICS), variables, method="__call__")
    with pytest.raises(UserError, match=rf"config\.x=y uses {operation}, which may look at several images at once"):
        noisy_counts.check_images_apart(classify, SHAPE, "config.x=y")
    plain = Normalised(SEMANTICS)
    allowed = forward(plain, registry.init_classifier(plain, jax.random.key(0), SHAPE), method="__call__")
    noisy_counts.check_images_apart(allowed, SHAPE, "config.x=y")


def test_one_image_exchanged_moves_the_counts_of_a_run_by_its_own(tmp_path):
    """The whole stage, with a network that stretches contrast over the batch."""
    config = tiny_config(tmp_path)
    config.query_net.model, config.query.k1 = "mixing_networks:MinMax", 2
    first = run(config, tmp_path / "first", "query")
    with np.load(config.data.path) as arrays:
        changed = dict(arrays)
    changed["train_images"][0] = 255 - changed["train_images"][0]
    np.savez(tmp_path / "other.npz", **changed)
    config.data.path, config.query_net.workdir = str(tmp_path / "other.npz"), str(tmp_path / "first")
    second = run(config, tmp_path / "second", "query")
    one, two = (query.load_exact(make_inputs(config, workdir)) for workdir in (first, second))
    moved = np.delete(one - two, 0, axis=0)
    assert not moved.any() and np.abs(one - two).sum() <= 2 * 2


def test_the_largest_noise_has_all_its_low_bits():
    """Noise of 2^58 is nearly always even, and would leave the low bits of the counts as they are."""
    key = np.arange(8, dtype=np.uint32)
    drawn = noise.rounded_gaussian(key, (4000,), noisy_counts.LARGEST_STD)
    assert abs(np.mean(drawn % 2) - 0.5) < 0.05 and abs(np.mean(drawn % 32) - 15.5) < 1
    bare = noise.rounded_gaussian(key, (4000,), noisy_counts.LARGEST_IN_UNITS)
    assert np.mean(bare % 2) < 0.05


@pytest.mark.parametrize(
    ("std", "unit", "too_large"),
    [
        (0.99 * 2.0**45, 1, False),
        (2.0**45, 1, True),
        (0.99 * 2.0**58, 1 << people.BITS, False),
        (2.0**58, 1 << people.BITS, True),
        (float("nan"), 1, True),
    ],
)
def test_noise_that_leaves_low_bits_bare_is_too_large(std, unit, too_large):
    assert noisy_counts.is_too_large(std, unit) == too_large
