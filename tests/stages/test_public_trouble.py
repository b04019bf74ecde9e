"""When a query network or a pre-trained generator is refused, and when images look the same."""

import math
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from privimage_jax.data import Dataset
from privimage_jax.errors import UserError
from privimage_jax.stages import pretrain, sample, train_query
from privimage_jax.training.mesh import make_mesh

CLASSES = 4


class Linear(nn.Module):
    """Logits from the mean brightness of an image."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(CLASSES)(x.mean((1, 2, 3))[:, None])


@pytest.fixture(scope="module")
def public():
    labels = np.arange(40, dtype=np.int32) % CLASSES
    images = np.broadcast_to((60 * labels + 30).astype(np.uint8)[:, None, None, None], (40, 4, 4, 1))
    return Dataset(np.array(images), labels, tuple("abcd"), "grey")


def variables(kernel, bias=0.0):
    return {"params": {"Dense_0": {"kernel": jnp.full((1, CLASSES), kernel), "bias": jnp.full(CLASSES, bias)}}}


def check(public, given):
    return train_query.check_result(Linear(), given, public, "lower it")


def test_a_network_that_has_learnt_is_taken(public):
    """Class c is brighter than class c - 1, and its logit grows faster with brightness."""
    given = variables(0.0)
    brightness = (60 * np.arange(CLASSES) + 30) / 127.5 - 1
    given["params"]["Dense_0"] = {"kernel": 40 * brightness[None], "bias": -20 * brightness**2}
    assert check(public, given) < 0.5 * math.log(CLASSES)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (variables(math.nan), "is not finite"),
        (variables(1e38, 1e38), "is not finite"),
        (variables(0.0, 3.0), "gives the same answer to every public image"),
    ],
)
def test_a_network_that_is_of_no_use_is_refused(public, given, found):
    with pytest.raises(UserError, match=rf"{found}; lower it\.$"):
        check(public, jax.tree.map(lambda leaf: leaf * 9, given))


def test_a_network_that_is_sure_of_what_is_wrong_is_refused(public):
    given = variables(0.0)
    given["params"]["Dense_0"]["kernel"] = jnp.array([[9.0, 3.0, -3.0, -9.0]])  # the brightest is taken for the first
    with pytest.raises(
        UserError, match=r"has diverged: its loss on public images is .* guess 1.39 \(ln of 4 classes\)"
    ):
        check(public, given)


def test_one_public_class_needs_no_network_that_learns():
    one = Dataset(np.zeros((3, 4, 4, 1), np.uint8), np.zeros(3, np.int32), ("a",), "one")

    class Single(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(1)(x.mean((1, 2, 3))[:, None])

    given = {"params": {"Dense_0": {"kernel": jnp.ones((1, 1)), "bias": jnp.ones(1)}}}
    assert train_query.check_result(Single(), given, one, "lower it") == 0


@pytest.mark.parametrize(
    ("params", "after", "found"),
    [
        ({"a": np.array([1.0, math.inf])}, 0.1, "a parameter of the pre-trained generator is not finite"),
        ({"a": np.ones(2)}, math.nan, "the loss on its images was 1 at the start and is nan"),
        ({"a": np.ones(2)}, 2.1, "the loss on its images was 1 at the start and is 2.1"),
    ],
)
def test_a_generator_that_is_worse_than_nothing_is_refused(params, after, found):
    pretrain.check_result({"a": np.ones(2)}, 1.0, 1.9, True, "lower it")
    with pytest.raises(UserError, match=rf"{found}; lower it\.$"):
        pretrain.check_result(params, 1.0, after, True, "lower it")


@pytest.mark.parametrize(("before", "after", "lowers_loss"), [(1.0, 9.0, False), (0.0, 9.0, True), (-1.0, 9.0, True)])
def test_a_loss_that_pre_training_need_not_lower_refuses_only_what_is_not_finite(before, after, lowers_loss):
    pretrain.check_result({"a": np.ones(2)}, before, after, lowers_loss, "lower it")
    for wrong in (math.nan, math.inf):
        with pytest.raises(UserError, match="has diverged"):
            pretrain.check_result({"a": np.ones(2)}, before, wrong, lowers_loss, "lower it")


def test_the_loss_of_two_parameters_is_compiled_once():
    traced = []

    def per_example_loss(params, batch, keys):
        traced.append(batch["image"].shape)
        return params * batch["label"].astype(jnp.float32)

    family = types.SimpleNamespace(per_example_loss=per_example_loss)
    images, labels = np.zeros((100, 2, 2, 1), np.uint8), np.ones(100, np.int32)
    loss = pretrain.public_loss(family, images, labels, make_mesh(jax.devices()[:1]))
    assert (loss(jnp.float32(1.0)), loss(jnp.float32(3.0))) == (1.0, 3.0)
    assert traced == [(16, 2, 2, 1)]


@given(
    arrays.arrays(np.uint8, (6, 2, 2, 1), elements=st.integers(0, 253)),
    arrays.arrays(np.uint8, (6, 2, 2, 1), elements=st.integers(0, 2)),
)
def test_images_that_differ_by_less_than_the_eye_sees_are_alike(images, little):
    same = np.broadcast_to(images[:1], images.shape) + little
    assert sample.classes_alike(same, np.arange(6) % 2, ("a", "b", "none")) == ["a", "b"]
    same[0, 0, 0, 0] = 255 if same[2, 0, 0, 0] < 128 else 0
    assert sample.classes_alike(same, np.arange(6) % 2, ("a", "b")) == ["b"]
    assert not sample.looks_alike(same)


def test_a_single_image_is_like_no_other():
    assert not sample.looks_alike(np.zeros((1, 2, 2, 1), np.uint8))
    assert not sample.classes_alike(np.zeros((2, 2, 2, 1), np.uint8), np.arange(2), ("a", "b"))
