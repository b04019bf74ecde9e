"""The experiment files: each is accepted, with every variant, and can be planned and built."""

import importlib
import pathlib

import jax
import pytest

from privimage_jax import config as configs
from privimage_jax import generators
from privimage_jax.configs import base, camelyon, celeba, cifar10, cifar100, eurosat, mnist, places365, published
from privimage_jax.errors import UserError
from privimage_jax.models.registry import build_classifier, parameter_count
from privimage_jax.run.plan import make_plan
from privimage_jax.settings import methods
from privimage_jax.targets import facts

FOLDER = pathlib.Path(base.__file__).parent
MODULES = {
    path.stem: importlib.import_module(f"privimage_jax.configs.{path.stem}")
    for path in sorted(FOLDER.glob("*.py"))
    if path.stem not in ("__init__", "published")
}
EXPERIMENTS = [(name, variant) for name, module in MODULES.items() for variant in getattr(module, "VARIANTS", ("",))]
SIZES: dict[str, int] = {}


def make(name: str, variant: str = ""):
    return MODULES[name].get_config(*[variant] * bool(variant))


def size_of_network(config) -> int:
    """Parameters of the generator for 10 classes; traced once for each network."""
    sections = (config.generator, config.gan.to_json(), config.model.to_json())
    network = f"{sections} {config.data.image_size} {config.data.channels}"
    if network not in SIZES:
        SIZES[network] = parameter_count(jax.eval_shape(generators.build(config, 10).init, jax.random.key(0)))
    return SIZES[network]


@pytest.mark.parametrize(("name", "variant"), EXPERIMENTS)
def test_every_experiment_is_accepted_planned_and_built(name, variant):
    config = configs.check(make(name, variant))
    config.privacy.accountant = "rdp"  # the other takes seconds for each
    known = {"public_n": 60_000, "public_classes": 200} if name == "mnist_cpu" else {}
    if config.data.n:
        sizes = facts.gather(config, **known)
        warmup = ["noisy means"] * config.warmup.enabled
        assert make_plan(config, sizes.n).mechanisms == ["semantic query", *warmup, "DP-SGD fine-tuning"]
        assert 0 < facts.selected(config, sizes) <= sizes.public_n
    assert size_of_network(config) > 50_000
    for classifier in config.evaluate.classifiers:
        build_classifier(classifier, n_classes=10, **config.evaluate.classifier_kwargs[classifier])


@pytest.mark.parametrize("name", [name for name, module in MODULES.items() if hasattr(module, "VARIANTS")])
def test_an_unknown_variant_is_told_with_the_known_ones(name):
    with pytest.raises(UserError, match=rf"configs/{name}\.py knows no 'offical'; give one of {name}\.py"):
        MODULES[name].get_config("offical")


@pytest.mark.parametrize(("name", "variant"), [(name, variant) for name, variant in EXPERIMENTS if variant])
def test_every_variant_is_in_the_docstring_of_its_file(name, variant):
    assert f":{variant}" in MODULES[name].__doc__


def test_the_published_sizes_of_networks():
    """DPImageBench's logs say 3.87 M and 1.52 M, with a label for each of ImageNet's 1,000 classes."""
    assert 3.8e6 < size_of_network(cifar10.get_config("dpimagebench")) < 3.9e6
    assert 1.48e6 < size_of_network(mnist.get_config("dpimagebench")) < 1.52e6


def test_whose_settings_are_whose():
    """The table of published settings: share, steps, K, batch and noise of the query."""
    official, benchmark = cifar10.get_config("official"), cifar10.get_config("dpimagebench")
    assert (official.pretrain.steps, official.pretrain.batch_size) == (500_000, 512)
    assert (official.finetune.batch_size, official.finetune.epochs, official.privacy.delta) == (19384, 50, 1e-5)
    assert (official.finetune.noise_multiplicity, benchmark.finetune.noise_multiplicity) == (8, 32)
    assert (official.query.k1, official.selection.k2, benchmark.query.k1, benchmark.selection.k2) == (5, 5, 5, 5)
    assert (benchmark.pretrain.steps, benchmark.data.n, benchmark.privacy.delta) == (198_400, 45_000, 0)
    assert facts.selected(benchmark, facts.gather(benchmark)) == published.IMAGENET[0] * 5 // 100
    large = celeba.get_config("dpimagebench_128")
    assert (large.pretrain.steps, large.finetune.noise_multiplicity, large.query.k1) == (800_000, 4, 25)
    places = places365.get_config("camelyon")
    assert (places.query.k1, places.selection.k2, places.pretrain.steps) == (9, 9, 3200 * 86)


@pytest.mark.parametrize("name", ["privimage_gan", "dpgan"])
def test_a_gan_in_place_of_a_diffusion_model_has_its_published_settings(name):
    config = celeba.get_config("dpimagebench_32")
    methods.apply(config, name)
    assert (config.gan.pretrain_rate, config.gan.finetune_rate, config.finetune.noise_multiplicity) == (5e-4, 5e-4, 1)
    config.finetune.noise_multiplicity = 3  # a GAN's own
    methods.apply(config, name)
    assert config.finetune.noise_multiplicity == 3


def test_the_published_noisy_means():
    faces, digits = celeba.get_config("dpimagebench_32").warmup, mnist.get_config("dpimagebench").warmup
    assert (faces.means, faces.subset_size, faces.noise_multiplier) == (250, 12_000, 10)
    assert (digits.means, digits.subset_size, digits.noise_multiplier) == (5, 6_000, 5)
    tissue = camelyon.get_config("dpimagebench").warmup
    assert (tissue.means, tissue.subset_size, tissue.noise_multiplier) == (250, 12_000, 10)
    for one in (cifar100.get_config("dpimagebench").warmup, eurosat.get_config("dpimagebench").warmup):
        assert (one.means, one.subset_size, one.noise_multiplier) == (1, 12_000, 5)


def test_celeba_has_three_sizes():
    assert [celeba.get_config(size).data.image_size for size in ("32", "64", "128")] == [32, 64, 128]
