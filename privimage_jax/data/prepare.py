"""Download a public set with TensorFlow Datasets, once, in the format that `data.source = "tfds"` reads."""

import contextlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from privimage_jax.data import preparing_errors
from privimage_jax.data.conversion import add_array_record
from privimage_jax.data.sources import prepared_sets
from privimage_jax.errors import UserError
from privimage_jax.storage import reading

_RETRIES = 5  # within 6 seconds; TFDS's own ten take over three minutes without a network, and say nothing meanwhile


def prepare(name: str, data_dir: str = "") -> Path:
    """Makes TFDS's set `name` ready to be read, and returns the prepared folder.

    What is prepared already stays; a set that is stored as tfrecord gets array_record beside it. Only a set that is
    not there is downloaded. That runs TFDS's own code, which needs TensorFlow; reading what it wrote does not.

    Args:
      name: as TFDS calls it, such as "cifar10" or "imagenet_resized/32x32"; or the folder of one prepared set.
      data_dir: the folder of all prepared sets; "" = TFDS's default, `~/tensorflow_datasets`.

    Raises:
      UserError: if there is no such set, or it cannot be downloaded or read; nothing of it counts as prepared then.
    """
    builder = _builder(name, data_dir)
    folder = Path(builder.data_dir)
    if not prepared_sets.is_prepared(builder):
        _download(builder, name)
    elif not prepared_sets.has_array_record(builder):
        _add_format(builder, name)
    with reading.user_errors(folder, prepared_sets.REMEDY):
        _check(prepared_sets.builder_in(folder))
    return folder


def _builder(name: str, data_dir: str) -> Any:
    """TFDS's builder of a set, by its name or its folder."""
    folder = Path(name).expanduser()
    if (folder / prepared_sets.INFO).is_file() and not data_dir:
        with reading.user_errors(folder, prepared_sets.REMEDY):
            return prepared_sets.builder_in(folder)
    if not prepared_sets.is_name(name):
        raise UserError(
            f"{name!r} is neither a name of TensorFlow Datasets, such as mnist or imagenet_resized/32x32, "
            f"nor a folder that holds {prepared_sets.INFO}; give one of these."
        )
    try:
        return prepared_sets.builder_of(name, data_dir)
    except UserError:
        raise
    except Exception as error:  # no such set, config or version; or a package is missing: TFDS raises many types
        raise UserError(preparing_errors.of_name(name, error)) from error


def _download(builder: Any, name: str) -> None:
    folder = Path(builder.data_dir)
    if folder.exists():  # TFDS would take it for the prepared set
        raise UserError(
            f"{folder} is there and holds no prepared set (it has no {prepared_sets.INFO}); "
            "delete it, or give another --data_dir."
        )
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(f'preparing {name} needs TensorFlow; run `pip install -e ".[prepare]"` in the checkout first.')
    try:
        with _fewer_retries():
            builder.download_and_prepare(file_format="array_record")
    except Exception as error:  # network, checksum, disk, a set that must be fetched by hand: TFDS raises many types
        raise UserError(preparing_errors.of_download(name, folder, error)) from error


@contextlib.contextmanager
def _fewer_retries() -> Iterator[None]:
    from tensorflow_datasets.core.download import downloader

    before, downloader.MAX_RETRIES = downloader.MAX_RETRIES, _RETRIES
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


def _add_format(builder: Any, name: str) -> None:
    stored = builder.info.file_format.value
    if stored != "tfrecord":
        raise UserError(
            f"{builder.data_dir} is stored as {stored}, which is not converted; prepare the set in another folder, "
            f"as by `{prepared_sets.command(builder.info.name, 'FOLDER')}`."
        )
    add_array_record(builder)


def _check(builder: Any) -> None:
    """Refuses a set whose files are not all there; the reader would, but later."""
    prepared_sets.take_array_record(builder)
    for split in builder.info.splits.values():
        try:
            prepared_sets.check_shards(split.file_instructions, Path(builder.data_dir))
        except reading.Unreadable:
            raise
        except ValueError as error:
            raise reading.Unreadable(f"is not whole, as {error}") from None
