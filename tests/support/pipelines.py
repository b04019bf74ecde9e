"""The smallest experiment that goes through every stage, and ways to run it, for the tests of the whole pipeline."""

import pathlib

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax import pipeline
from privimage_jax.configs import base
from privimage_jax.run.inputs import make_inputs
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh

SIDE, CLASSES, SEMANTICS = 8, 3, 6
IMAGES = 60  # sensitive ones, and public ones


class Denoiser(nn.Module):
    """One hidden layer: compiles in a moment, and takes the pipeline's import-string path."""

    n_classes: int
    channels: int
    width: int = 16

    @nn.compact
    def __call__(self, x, c_noise, label):
        h = nn.Dense(self.width)(x.reshape(len(x), -1)) + nn.Embed(self.n_classes + 1, self.width)(label)
        h = nn.silu(h + nn.Dense(self.width)(c_noise[:, None]))
        return nn.Dense(x[0].size)(h).reshape(x.shape)


class Classifier(nn.Module):
    """One hidden layer."""

    n_classes: int
    width: int = 16

    def setup(self):
        self.hidden, self.head = nn.Dense(self.width), nn.Dense(self.n_classes)

    def __call__(self, x, train=False):
        return self.head(self.features(x, train))

    def features(self, x, train=False):
        return nn.relu(self.hidden(x.reshape(len(x), -1)))


class Failing(Classifier):
    """A model with a mistake."""

    def features(self, x, train=False):
        return x / (1 // 0)


def coarse(x):
    """Features of the import-string kind: every fourth pixel."""
    return x[:, ::4, ::4, 0].reshape(len(x), -1)


def write_npz(path: pathlib.Path, n: int, classes: int, seed: int) -> pathlib.Path:
    """Noisy squares whose place tells the class, as training and test arrays."""
    generator = np.random.default_rng(seed)

    def images_of(labels):
        images = generator.integers(0, 60, (len(labels), SIDE, SIDE, 1))
        for image, label in zip(images, labels, strict=True):
            image[label : label + 3, label : label + 3] += 180
        return images.astype(np.uint8)

    labels = np.arange(n) % classes
    np.savez(
        path,
        train_images=images_of(labels),
        train_labels=labels,
        test_images=images_of(labels[: n // 2]),
        test_labels=labels[: n // 2],
    )
    return path


def tiny_config(folder: pathlib.Path):
    """A config on small npz files in `folder`, with a fixed seed in place of entropy."""
    config = base.get_config()
    config.name = "tiny"
    for name, classes, seed in (("data", CLASSES, 1), ("public", SEMANTICS, 2)):
        path = folder / f"{name}.npz"
        config[name].source = "npz"
        config[name].path = str(path if path.exists() else write_npz(path, IMAGES, classes, seed))
    config.data.class_names = ("left", "middle", "right")
    config.data.image_size = SIDE
    config.data.channels = 1
    config.privacy.fixed_seed = 7
    config.query_net.model = "pipelines:Classifier"
    config.query_net.epochs = 4.0
    config.query_net.batch_size = 20
    config.query.noise_multiplier = 5.0
    config.model.name = "pipelines:Denoiser"
    config.model.kwargs = ConfigDict()
    config.pretrain.steps = 6
    config.pretrain.batch_size = 8
    config.finetune.batch_size = 20
    config.finetune.steps = 6
    config.finetune.block = 3
    config.finetune.noise_multiplicity = 2
    config.clipping.microbatch = 8
    config.sample.n = 12
    config.sample.batch_size = 6
    config.sample.steps = 3
    config.sampler_choice.n = 10
    config.sampler_choice.classifier = "pipelines:Classifier"
    config.sampler_choice.classifier_steps = 10
    config.evaluate.classifiers = ("pipelines:Classifier",)
    config.evaluate.classifier_steps = 10
    config.evaluate.classifier_batch_size = 10
    config.log.every = 2
    config.log.sample_every = 0
    config.log.checkpoint_every = 2
    return config


def run(config, workdir: pathlib.Path, last: str | None = None, n_devices: int = 1) -> Workdir:
    """Runs the pipeline in this process, on the first devices of all processes, and returns its workdir."""
    result = Workdir(workdir)
    pipeline.run(make_inputs(configs.check(config), result, make_mesh(jax.devices()[:n_devices])), last)
    return result


def release_bytes(workdir: Workdir) -> dict[str, bytes]:
    """Every released file's content by its name."""
    files = sorted(path for path in workdir.release.rglob("*") if path.is_file())
    return {str(path.relative_to(workdir.release)): path.read_bytes() for path in files}
