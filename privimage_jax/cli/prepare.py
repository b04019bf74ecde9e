"""`privimage prepare`: a set of TensorFlow Datasets, downloaded."""

import logging
import os

from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import parse


def run(arguments: list[str]) -> None:
    """Downloads, and says where to."""
    values, names = parse(arguments, optional=["data_dir"], positional="the NAME of one TFDS set")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells how it was compiled, and that it finds no GPU
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # of which it would take the whole memory, for nothing
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # each attempt; the last is told
    from privimage_jax.data.prepare import prepare

    print(f"prepared {prepare(names[0], values.data_dir or '')}")


COMMAND = Command(
    "prepare",
    "download a TFDS set (needs the extra [prepare])",
    """
usage: privimage prepare NAME [--data_dir FOLDER]
       privimage prepare FOLDER

NAME         as the catalogue of TensorFlow Datasets has it, such as mnist or imagenet_resized/32x32
FOLDER       one prepared set
--data_dir   the folder of all prepared sets (~/tensorflow_datasets)

A set that is prepared stays as it is. Where it is stored as tfrecord, array_record is added to its
folder; that needs neither the extra nor the network.
""",
    run,
)
