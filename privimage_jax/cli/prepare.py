"""`privimage prepare`: a set of TensorFlow Datasets, downloaded."""

from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import parse


def run(arguments: list[str]) -> None:
    """Downloads, and says where to."""
    values, names = parse(arguments, optional=["data_dir"], positional="the NAME of one TFDS set")
    from privimage_jax.data.prepare import prepare

    print(f"prepared {prepare(names[0], values.data_dir or '')}")


COMMAND = Command(
    "prepare",
    "download a TFDS set (needs the extra [prepare])",
    """
usage: privimage prepare NAME [--data_dir FOLDER]

NAME         as the catalogue of TensorFlow Datasets has it, such as mnist or imagenet_resized/32x32
--data_dir   the folder of all prepared sets (~/tensorflow_datasets)
""",
    run,
)
