import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pipelines
import pytest
from weights import random_weights, safetensors

from privimage_jax.errors import UserError
from privimage_jax.metrics import extractors
from privimage_jax.metrics.features import forward
from privimage_jax.models import registry
from privimage_jax.models.inception import variables_from_torch

SHAPE = (8, 8, 1)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (21, *SHAPE), np.uint8)


def network(seed=0, **kwargs):
    model = registry.build_classifier("pipelines:Classifier", 5, **kwargs)
    return model, registry.init_classifier(model, jax.random.key(seed), SHAPE)


def flops(function, images):
    cost = jax.jit(function).lower(jnp.zeros(images.shape)).compile().cost_analysis()
    return cost["flops"]


def test_features_and_logits_of_the_query_network_in_one_pass(images):
    model, variables = network()
    extractor = extractors.of_network(model, variables)
    outputs = extractor.outputs(images, "real")
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    for values, method in ((outputs.features, "features"), (outputs.logits, "__call__")):
        np.testing.assert_allclose(values, model.apply(variables, x, method=method), rtol=1e-5, atol=1e-5)
    assert flops(extractor.apply, images) < 1.01 * flops(forward(model, variables, "__call__"), images)


def test_the_digest_tells_networks_apart():
    settings = ({}, {}, {"seed": 1}, {"width": 8})
    digests = [extractors.of_network(*network(**more)).digest for more in settings]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_a_function_of_the_user(images, monkeypatch):
    extractor = extractors.load("pipelines:coarse", "", SHAPE)
    outputs = extractor.outputs(images, "real")
    np.testing.assert_allclose(outputs.features, (images[:, ::4, ::4, 0].reshape(21, 4) / 127.5 - 1), atol=1e-6)
    assert outputs.logits is None
    assert extractors.load("pipelines:coarse", "", SHAPE).digest == extractor.digest
    monkeypatch.setattr(pipelines, "coarse", lambda x: x[:, 0, :, 0])
    assert extractors.load("pipelines:coarse", "", SHAPE).digest != extractor.digest


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x: x, r"turns images \[1, 8, 8, 1\] into float32 \[1, 8, 8, 1\]; it must give"),
        (lambda x: x.mean(axis=(1, 2, 3)), r"into float32 \[1\]; it must give"),
        (lambda x: None, "into NoneType; it must give"),
        (lambda x: x.reshape(3, 7), "fails on images .* with TypeError"),
        (lambda x: x[:, 0, :, 0] * jnp.nan, "gives a NaN or an infinity for 8 of the 8 random images"),
    ],
)
def test_a_function_that_gives_no_features(monkeypatch, function, says):
    monkeypatch.setattr(pipelines, "coarse", function)
    with pytest.raises(UserError, match=f"config.evaluate.extractors: pipelines:coarse .*{says}"):
        extractors.load("pipelines:coarse", "", SHAPE)


@pytest.mark.parametrize(
    ("name", "says"),
    [("nowhere:f", "nowhere:f cannot be loaded"), ("pipelines:nothing", "has no 'nothing'")],
)
def test_a_function_that_is_not_there(name, says):
    with pytest.raises(UserError, match=f"config.evaluate.extractors: .*{says}"):
        extractors.load(name, "", SHAPE)


def test_inception_from_a_file(tmp_path):
    weights = random_weights()
    content = safetensors(weights)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    extractor = extractors.load("inception", str(path), SHAPE)
    outputs = extractor.shapes(SHAPE, 3)
    assert outputs.features.shape == (3, 2048) and outputs.logits.shape == (3, 1008)
    assert extractor.digest == extractors.of_inception(variables_from_torch(weights, "a test")).digest
    assert extractors.inception_sha256(str(path)) == hashlib.sha256(content).hexdigest()


def test_the_name_of_the_weights_says_how_their_checksum_begins(tmp_path):
    for name, digits in (("a-%s.pth", 8), ("a-2015-12-05-%s.pth", 64)):
        content = b"weights"
        path = tmp_path / (name % hashlib.sha256(content).hexdigest()[:digits])
        path.write_bytes(content)
        assert extractors.inception_sha256(str(path)) == hashlib.sha256(content).hexdigest()
        path.write_bytes(b"others")
        with pytest.raises(UserError, match=r"has the SHA-256 .*, but its name says .*; download pt_inception-2015"):
            extractors.inception_sha256(str(path))


def test_weights_that_are_not_there_or_not_inception(tmp_path):
    with pytest.raises(UserError, match=r"inception_weights=/no/file is missing; download pt_inception-2015-12-05-67"):
        extractors.load("inception", "/no/file", SHAPE)
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors({"weight": np.zeros(3)}))
    with pytest.raises(UserError, match=r"other.safetensors lacks Mixed|lacks Conv2d|lacks fc"):
        extractors.load("inception", str(path), SHAPE)
