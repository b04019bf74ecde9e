"""Prepares a set of our own twice under a folder, with TensorFlow: `python prepare_both.py FOLDER`.

The command prepares `FOLDER/new`, and adds array_record to `FOLDER/old`, which TFDS itself prepared as tfrecord.
"""

import sys

import tensorflow_datasets as tfds
from catalogue import own_sets

from privimage_jax.main import main

NAME = f"{own_sets.OwnPictures.name}/pixels"

if __name__ == "__main__":
    new, old = f"{sys.argv[1]}/new", f"{sys.argv[1]}/old"
    tfds.builder(NAME, data_dir=old, file_format="tfrecord").download_and_prepare()
    sys.exit(max(main(["privimage", "prepare", NAME, "--data_dir", folder]) for folder in (old, new)))
