"""Sets of our own for TensorFlow Datasets to prepare, as its catalogue's are written; they need no network.

Imported, they are in the catalogue: `own_pictures/png`, which TFDS prepares without TensorFlow, and
`own_pictures/pixels`, which TensorFlow compresses, as it does for most sets of the catalogue; and `own_download`.
"""

import io
import os

import tensorflow_datasets as tfds
from prepared import picture, png

CLASSES = ("cat", "dog", "fox")


class OwnPictures(tfds.core.GeneratorBasedBuilder):
    """Example i is `picture(i)` of label i % 3; 30 to train, 6 to test."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("png", "pixels")]

    def _info(self):
        features = {"image": tfds.features.Image(shape=(8, 8, 3)), "label": tfds.features.ClassLabel(names=CLASSES)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(30), "test": self._generate_examples(6)}

    def _generate_examples(self, count):
        for i in range(count):
            image = picture(i) if self.builder_config.name == "pixels" else io.BytesIO(png(picture(i)))
            yield i, {"image": image, "label": i % 3}


class OwnDownload(tfds.core.GeneratorBasedBuilder):
    """One picture, which is the file at an address; `sums` has its size and checksum, if TFDS is to know them."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Register first.\nThen put own.zip there."
    url, sums = "", {}

    @property
    def url_infos(self):
        return self.sums

    def _info(self):
        features = {"image": tfds.features.Image(shape=(8, 8, 3))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        path = dl_manager.manual_dir / "own.png" if self.url == "by hand" else dl_manager.download(self.url)
        return {"train": self._generate_examples(path)}

    def _generate_examples(self, path):
        yield 0, {"image": os.fspath(path)}
