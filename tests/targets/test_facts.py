"""What a config tells of its data sets without reading them."""

import pytest

from privimage_jax.configs import base, cifar10, quickstart
from privimage_jax.errors import UserError
from privimage_jax.targets import facts


def test_published_sets_are_known():
    known = facts.gather(cifar10.get_config())
    assert known == facts.Facts(50_000, 10, 1_281_167, 1000)
    assert facts.selected(cifar10.get_config(), known) == 12_811  # one class in a hundred


def test_generated_sets_are_known():
    known = facts.gather(quickstart.get_config())
    assert (known.n, known.n_classes) == (1437, 10)
    assert known.public_n > 1000 and known.public_classes > 40


def test_flags_say_what_the_config_does_not():
    config = cifar10.get_config()
    config.data.path = config.public.path = "/somewhere"
    with pytest.raises(UserError, match="--classes=10"):
        facts.gather(config)
    with pytest.raises(UserError, match="--public_n=1281167"):
        facts.gather(config, n_classes=10)
    with pytest.raises(UserError, match="--public_classes=1000"):
        facts.gather(config, n_classes=10, public_n=5000)
    assert facts.gather(config, 10, 5000, 1000) == facts.Facts(50_000, 10, 5000, 1000)


def test_the_number_of_images_must_be_declared():
    with pytest.raises(UserError, match=r"config\.data\.n is 0"):
        facts.gather(base.get_config())


def test_a_limit_on_public_images_counts():
    config = cifar10.get_config()
    config.public.max_examples = 1000
    config.selection.method = "all"
    known = facts.gather(config)
    assert known.public_n == facts.selected(config, known) == 1000
