"""What `config.generator=gan` asks of the settings."""

from ml_collections import ConfigDict

from privimage_jax.errors import UserError


def sides(side: int) -> list[int]:
    """Sides of the images inside the generator, from the first to the final one: halved once, and while above 4.

    >>> sides(32), sides(28), sides(4)
    ([4, 8, 16, 32], [4, 7, 14, 28], [2, 4])
    """
    found = [-(-side // 2), side]
    while found[0] > 4:
        found.insert(0, -(-found[0] // 2))
    return found


def check(config: ConfigDict) -> None:
    """Refuses batches that cannot be cut into pieces, and noise that is too short.

    Raises:
      UserError: naming the setting.
    """
    size, most = config.gan.batch_size, config.gan.microbatch
    if size > most and size % most:
        raise UserError(
            f"config.gan.batch_size={size} cannot be cut into pieces of config.gan.microbatch={most}; give a multiple."
        )
    parts = len(sides(config.data.image_size))
    if config.gan.noise < parts:
        raise UserError(
            f"config.gan.noise={config.gan.noise} cannot be cut into {parts} parts, one for the start and one for each "
            f"block of the generator; give at least {parts}."
        )
