"""`config.private_cache`: decoded images, their features and what classifiers learn of real images, for other runs.

Beside them lies what making each entry of the public cache took. All of it tells of sensitive images without noise, so
that the folder is its owner's alone. Each file is named by a digest of all that decides it, which is how a cache never
changes a result. Files of images are known by name, size, time and their ends (`data.sources.base.stamp`), and a folder
of pictures by names, sizes and times: whoever replaces images and keeps all of these deletes the cache. Without the
setting each run has its own, `internal/cache`.
"""

import stat
from pathlib import Path

from ml_collections import ConfigDict

from privimage_jax.errors import UserError
from privimage_jax.run import shared_folders
from privimage_jax.storage.workdir import Workdir

_KEY = "private_cache"


def folder(config: ConfigDict, own: Workdir) -> Path:
    """Where a run keeps what it finds of real images, apart from its results.

    Args:
      config: of the run.
      own: the run's folder.
    """
    return shared_folders.path(_KEY, config.private_cache) if config.private_cache else own.cache


def check(config: ConfigDict, own: Workdir) -> None:
    """Makes the folder, if there is to be one, and refuses one that others may read, or in the public cache.

    Raises:
      UserError: for that, and as `shared_folders.check`.
    """
    if config.private_cache and config.public_cache:
        private = shared_folders.path(_KEY, config.private_cache).resolve()
        public = shared_folders.path("public_cache", config.public_cache).resolve()
        if private in (public, *public.parents) or public in private.parents:
            raise UserError(
                f"config.{_KEY}={config.private_cache} and config.public_cache={config.public_cache} are one folder, "
                "or one lies in the other; what sees real images must stay apart, so give two folders."
            )
    shared_folders.check(_KEY, config.private_cache, own)
    if config.private_cache and stat.S_IMODE(folder(config, own).stat().st_mode) & 0o077:
        raise UserError(
            f"config.{_KEY}={config.private_cache} may be read by others, and real images lie there; run chmod 700 on "
            "it, or give another folder."
        )
