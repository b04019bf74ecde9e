"""Several classifiers and seeds: what is reported of them, and what an interrupted run keeps."""

import dataclasses
import json
import statistics

import jax
import numpy as np
import pytest
from pipelines import tiny_config

from privimage_jax import config as configs
from privimage_jax.metrics.downstream import benchmark, quick
from privimage_jax.models import registry
from privimage_jax.run.inputs import make_inputs
from privimage_jax.stages.parts import utility
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh

TWO = ("pipelines:Classifier", "small_models:SmallClassifier")


@pytest.fixture
def config(tmp_path):
    config = tiny_config(tmp_path)
    config.data.cache = config.public.cache = False
    return config


@pytest.fixture
def measured(config, tmp_path, monkeypatch):
    """`measured() -> results`, with every training in `measured.trainings` as (model, set, protocol, seed)."""
    trainings = []

    def fit(model, train, protocol, *, seed, on_steps, residency):
        trainings.append((type(model).__name__, train.name, protocol, seed))
        shapes = registry.classifier_shapes(model, train.image_shape)
        return jax.tree.map(lambda leaf: np.full(leaf.shape, len(trainings), leaf.dtype), shapes)

    def accuracy(model, variables, test):
        """(1 + number of the training) / 64, and a half more on synthetic images."""
        number = jax.tree.leaves(variables)[0].flat[0]
        return float(1 + number) / 64 + (0.5 if test.name == "made" else 0)

    def call():
        context = make_inputs(configs.check(config), Workdir(tmp_path / "run"), make_mesh(jax.devices()[:1]))
        context.workdir.create()
        synthetic = dataclasses.replace(context.held_out, name="made")
        return utility.measure(context, synthetic, tmp_path / "accuracies.json")

    monkeypatch.setattr(utility, "fit", fit)
    monkeypatch.setattr(utility, "accuracy", accuracy)
    call.trainings = trainings
    return call


def test_one_classifier_and_seed(measured, config):
    results = measured()
    assert results == {"accuracy_synthetic": 2 / 64, "accuracy_real": 3 / 64, "accuracy_labels": 35 / 64}
    assert utility.describe(results) == "accuracy_synthetic 0.03125  accuracy_real 0.04688  accuracy_labels 0.5469"
    assert [protocol for *_, protocol, _ in measured.trainings] == [quick(10, 10)] * 2


def test_several_classifiers_and_seeds(measured, config):
    config.evaluate.classifiers, config.evaluate.classifier_seeds, config.seed = TWO, 3, 2**32 - 1
    results = measured()
    assert [seed for *_, seed in measured.trainings] == [2**32 - 1, 0, 1] * 4
    assert [name for name, *_ in measured.trainings] == ["Classifier"] * 6 + ["SmallClassifier"] * 6
    assert list(results) == [
        f"accuracy_{kind}{name}{spread}"
        for names in (("", "_Classifier"), ("_SmallClassifier",))
        for kind in ("synthetic", "real", "labels")
        for name in names
        for spread in ("", "_std")
    ]
    third = [(1 + count) / 64 for count in (7, 8, 9)]
    assert results["accuracy_synthetic_SmallClassifier"] == pytest.approx(statistics.mean(third))
    assert results["accuracy_synthetic_SmallClassifier_std"] == pytest.approx(statistics.stdev(third))
    assert results["accuracy_real"] == results["accuracy_real_Classifier"]
    assert "accuracy_synthetic 0.04688 ± 0.016  " in utility.describe(results)


def test_what_was_trained_before_an_interruption_is_kept(measured, config, tmp_path):
    config.evaluate.classifiers = TWO
    record = {f"{TWO[0]} synthetic 0": 0.25, f"{TWO[0]} real 0": "damaged", "another": 1.0}
    (tmp_path / "accuracies.json").write_text(json.dumps(record))
    results = measured()
    assert results["accuracy_synthetic"] == 0.25
    assert len(measured.trainings) == 3
    assert measured() == results and len(measured.trainings) == 3


@pytest.mark.parametrize(("recipe", "cifar"), [("benchmark", False), ("benchmark_cifar", True)])
def test_the_recipe_of_the_benchmark(measured, config, recipe, cifar):
    config.evaluate.recipe = recipe
    measured()
    assert [protocol for *_, protocol, _ in measured.trainings] == [benchmark(30, cifar), benchmark(60, cifar)]


def test_arguments_go_to_their_model(config):
    config.evaluate.classifiers = ("cnn", "pipelines:Classifier")
    config.evaluate.classifier_kwargs.cnn.width = 4
    config.evaluate.classifier_kwargs.Classifier = {"width": 5}
    configs.check(config)
    assert [utility.build_classifier(config, name, 3).width for name in config.evaluate.classifiers] == [4, 5]
