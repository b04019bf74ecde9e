"""Download a public set with TensorFlow Datasets, once, in the format that `data.source = "tfds"` reads."""

import importlib.util
import os
from pathlib import Path

from privimage_jax.errors import UserError


def prepare(name: str, data_dir: str = "") -> Path:
    """Downloads and prepares TFDS's set `name` as array_record and returns the prepared folder.

    Preparing runs TFDS's own code, which needs TensorFlow; reading what it wrote does not.

    Args:
      name: as TFDS calls it, such as "cifar10" or "imagenet_resized/32x32".
      data_dir: the folder of all prepared sets; "" = TFDS's default, `~/tensorflow_datasets`.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f'preparing {name} needs TensorFlow; run `pip install -e ".[prepare]"` in the checkout first.')
    import tensorflow_datasets as tfds

    try:
        folder = os.path.expanduser(data_dir) or None
        builder = tfds.builder(name, data_dir=folder, file_format="array_record", try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise UserError(f"TensorFlow Datasets has no set {name!r} ({_first_line(error)}); check the name.") from error
    try:
        builder.download_and_prepare()
    except Exception as error:  # network, checksum, disk, a set that must be fetched by hand: TFDS raises many types
        raise UserError(
            f"preparing {name} in {builder.data_dir} failed ({_first_line(error)}); mend that and run it again."
        ) from error
    return Path(builder.data_dir)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
