"""What the evaluation measures of real sets that are listed class by class and larger than it may look at."""

import types

import numpy as np
import pytest

from privimage_jax.configs import base
from privimage_jax.data import Dataset
from privimage_jax.metrics.extractors import Extractor
from privimage_jax.metrics.features import Outputs
from privimage_jax.stages import evaluate
from privimage_jax.training.mesh import make_mesh

CLASSES, EACH = 3, 20


@pytest.fixture
def context(tmp_path):
    """A context whose real images show their class in their brightness, the darkest class first."""
    labels = np.repeat(np.arange(CLASSES, dtype=np.int32), EACH)
    images = (100 * labels).astype(np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)
    real = Dataset(images, labels, tuple("abc"), "real")
    config = base.get_config()
    config.query.k1 = 1
    config.evaluate.max_images = CLASSES * EACH // 2
    return types.SimpleNamespace(
        config=config,
        sensitive=real,
        held_out=real,
        workdir=types.SimpleNamespace(cache=tmp_path),
        private_cache=tmp_path,
        stage=None,
        mesh=make_mesh(),
    )


def test_semantics_are_counted_for_the_labels_of_the_images_measured(context):
    brightness = np.arange(CLASSES) * 100 / 127.5 - 1
    network = Extractor("query", lambda x: Outputs(x[:, :, 0, 0], -abs(x[:, 0, 0] - brightness)), "a digest")
    labels = np.arange(9, dtype=np.int32) % CLASSES
    logits = np.eye(CLASSES, dtype=np.float32)[labels]  # each class has one semantic, the same as the real images of it
    assert evaluate.semantic_similarity(context, network, logits, labels) == pytest.approx(1)


def test_how_many_people_the_held_out_images_show_is_said_where_people_are_the_unit(context):
    people = np.repeat(np.arange(10, dtype=np.int32), 6)
    real = context.held_out
    by_person = Dataset(real.images, real.labels, real.class_names, "real", people, unit="person")
    assert evaluate.sizes(real, real) == {"real_test_images": 60, "synthetic_images": 60}
    assert evaluate.sizes(by_person, real)["real_test_people"] == 10
