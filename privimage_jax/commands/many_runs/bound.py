"""Which runs of a folder bind later commands to their settings: those that are done, have spent, or are being made.

A run that failed before it spent anything binds nothing: its settings may be mended.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

from privimage_jax import config as configs
from privimage_jax.commands.many_runs.rows import Row
from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.privacy.ledger import spent
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.run.stage import named
from privimage_jax.settings import methods, use
from privimage_jax.storage import fingerprints, locks, reading
from privimage_jax.storage.workdir import Workdir


def depends(settings: use.Settings, key: str, by_method: bool) -> bool:
    """Whether what all runs share decides a setting that a run may look at, so that it is not finished with another.

    Args:
      settings: of the run, all of them; {} where they are not known, as if it read all.
      key: "section.key".
      by_method: whether runs differ in their methods, each of which may decide some settings itself.
    """
    if not settings:
        return True
    if by_method and key in methods.decided(str(settings.get("method"))):
        return False
    try:
        return configs.is_in_use(settings, key)
    except UserError:  # its images come from a module that is not here
        return True


def made(root: Path, done: Collection[str]) -> Iterator[Workdir]:
    """The runs in a folder that are done, as those named `done` are known to be, or have spent, in order of names."""
    for run in _runs(root):
        if run.root.name in done or run.done_mark(named("report").name) or _has_spent(run):
            yield run


def binding(root: Path, done: Collection[str]) -> dict[str, Row]:
    """Name of a run that binds -> its settings, {} where a process is making it; arguments as of `made`.

    What its `config.json` lacks is younger than the run, and has its default.
    """
    defaults = fingerprints.jsonable(dict(configs.flatten(base.get_config())))  # as the file has them: no tuples
    noted = {run.root.name: reading.read_record(run.config_json) for run in made(root, done)}
    found = {name: {**defaults, **settings} if settings else {} for name, settings in noted.items()}
    held = (run for run in _runs(root) if run.root.name not in found and locks.is_held(run.internal / "lock"))
    return found | {run.root.name: {} for run in held}


def _runs(root: Path) -> list[Workdir]:
    return [Workdir(path) for path in sorted(root.glob("*")) if path.is_dir()]


def _has_spent(run: Workdir) -> bool:
    """Whether a run has spent, or can no longer tell."""
    try:
        return bool(spent(open_ledger(run).entries))
    except UserError:
        return True
