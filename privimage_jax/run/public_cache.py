"""`config.public_cache`: what public stages have made, kept for other runs under a digest of all that decides it.

A stage takes what is kept in place of making it only if nothing differs: settings, public images, the content of what
it reads, code, libraries and devices. Then it would have made the same, so that a cache never changes a result; what is
damaged counts as not there. Nothing enters that was computed from sensitive images without noise: see `keeps`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.cluster import processes
from privimage_jax.errors import UserError, reason_of
from privimage_jax.run import private_cache, resources, shared_folders, trouble
from privimage_jax.run.code_version import code_version
from privimage_jax.run.inputs import Inputs
from privimage_jax.run.made_by import devices
from privimage_jax.run.stage import Stage, enabled_stages, upstream
from privimage_jax.storage import durable, entries, reading
from privimage_jax.storage.durable import make_dir, remove
from privimage_jax.storage.fingerprints import fingerprint, jsonable
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.writers import headline

BESIDE = ("metrics", trouble.FILE)  # what a public stage leaves beside its artefacts and notes, and pages show
TIMED = "events.out.tfevents.*"  # of these, which say when each line was written: times are internal
BEGUN = "made_from.json"  # in a stage's folder: what decided its result when it began


def keeps(config: ConfigDict, stage: Stage) -> bool:
    """Whether the config has a cache that holds this stage's artefacts.

    The stage and those before it must see no sensitive image but through a mechanism, and the artefacts must lie in the
    stage's own folder: to publish costs a look into the ledger.
    """
    if not config.public_cache or not stage.kept(config):
        return False
    noised = all(
        one.mechanism is not None or not (one.sees("sensitive") or one.sees("held_out"))
        for one in upstream(config, stage)
    )
    inside = all(Path(path).parent == Path("internal", stage.name) for path in stage.writes)
    return noised and inside and stage.mechanism is None


def run(inputs: Inputs, make: Callable[[], None]) -> None:
    """Takes what is kept of a stage, or makes it and keeps that; a stage that is not kept is made.

    Where another process is making the same, this one waits for it.

    Args:
      inputs: of the stage.
      make: runs the stage and notes its resources.

    Raises:
      UserError: if the cache cannot be read or written, or changes meanwhile.
    """
    stage = inputs.stage
    if stage is None or not keeps(inputs.config, stage):
        make()
        return
    made_from = _identity(inputs, stage)
    place, folder = shared_folders.path("public_cache", inputs.config.public_cache), inputs.folder(stage.name)
    entry = place / f"{stage.name}-{fingerprint(made_from)[:32]}"
    make_dir(entry.parent, mode=0o700)
    with durable.written_by_one(
        entry, lambda: headline(stage.name, "waiting", f"for another process, which makes {entry}")
    ):
        if manifest := _found(entry, made_from, stage):
            _take(entry, manifest, inputs, stage)
            durable.atomic_write_json(folder / BEGUN, made_from, 0o600)
            return
        _begin(folder, made_from)
        make()
        if reading.read_record(folder / BEGUN) != made_from:
            headline(stage.name, "not kept", "in config.public_cache: other code, devices or settings began the stage")
        else:
            _note_resources(entry, inputs, stage)
            entries.write(entry, made_from, folder, _names(stage), TIMED)


def _resources(entry: Path, inputs: Inputs) -> Path:
    """Where the private cache notes what making an entry took, for runs that share both caches.

    The process that made it held sensitive images, so that its times and its memory may tell of them.
    """
    return private_cache.folder(inputs.config, inputs.workdir) / f"resources-{entry.name}.json"


def _note_resources(entry: Path, inputs: Inputs, stage: Stage) -> None:
    path = _resources(entry, inputs)
    if processes.is_first() and inputs.config.private_cache:
        make_dir(path.parent, mode=0o700)
        with durable.written_by_one(path):  # or a run that begins takes it for what a killed one has left
            durable.atomic_write_json(path, resources.read(inputs.workdir).get(stage.name, {}), resources.MODE)


def _begin(folder: Path, made_from: dict[str, Any]) -> None:
    """Notes what decides the result of a stage that begins afresh; of one that goes on this must have been noted."""
    if {path.name for path in folder.iterdir()} <= {"started.json"}:
        durable.atomic_write_json(folder / BEGUN, made_from, 0o600)


def _found(entry: Path, made_from: dict[str, Any], stage: Stage) -> dict[str, Any]:
    """The manifest of an intact entry; {} if any process of the run sees none."""
    manifest: dict[str, Any] = {}
    processes.current().barrier("the public cache")  # the first process holds the entry's lock from here on
    try:
        manifest = entries.read(entry, made_from) if os.path.lexists(entry) else {}
    except (OSError, ValueError) as error:
        headline(stage.name, "warning", f"{entry} of config.public_cache {_reason(error)}; it is made again.")
    return manifest if processes.current().min_over_processes("what it has", int(bool(manifest))) else {}


def _take(entry: Path, manifest: dict[str, Any], inputs: Inputs, stage: Stage) -> None:
    folder, made = inputs.folder(stage.name), reading.read_record(_resources(entry, inputs))
    with reading.user_errors(entry, "delete it, and run the same command again"):
        entries.copy_out(entry, manifest, folder, _names(stage))
    remove(folder / "checkpoints")  # of an earlier start that was interrupted
    resources.note(inputs.workdir, stage.name, {**made, "taken": True})
    headline(stage.name, "taken", f"from {entry}: made before from the same settings, data and code")
    for sentence in trouble.read(inputs.workdir, stage.name):
        headline(stage.name, "warning", sentence)


def check(config: ConfigDict, own: Workdir) -> None:
    """Makes the cache's folder, if there is to be one; raises what `shared_folders.check` does."""
    shared_folders.check("public_cache", config.public_cache, own)


def _names(stage: Stage) -> tuple[str, ...]:
    """What is copied from the stage's folder, and into it: the artefacts last, as they are what later stages read."""
    return (*BESIDE, *(Path(path).name for path in (*stage.notes, *stage.writes)))


def _identity(inputs: Inputs, stage: Stage) -> dict[str, Any]:
    """All that decides what the stage makes. How often it logs decides its curves, which pages show."""
    config = inputs.config
    sees_public = any(one.sees("public") for one in upstream(config, stage))
    return jsonable(
        {
            "stage": stage.name,
            "settings": stage.settings(config),
            "log": configs.section(config, "log"),
            "classes": inputs.sensitive.class_names if stage.sees("classes") else None,
            "public": inputs.public.digest() if sees_public else None,
            "held out": _held_out(inputs) if stage.notes_public_held_out else None,
            "reads": {path: entries.digests(inputs.workdir.root / path) for path in _read(config, stage)},
            "code": code_version(config, stage),
            "devices": devices(inputs.mesh),
        }
    )


def _held_out(inputs: Inputs) -> str:
    """A digest of the public images that teach nothing, or of why there are none, which a stage may note."""
    try:
        return inputs.public_held_out.digest()
    except UserError as error:
        return fingerprint(str(error))


def _read(config: ConfigDict, stage: Stage) -> list[str]:
    """The artefacts of earlier stages whose content decides the stage's result."""
    before = [one for one in enabled_stages(config) if one.name in stage.reads(config)]
    return [path for one in before for path in one.writes if path not in stage.unread]


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, reading.Unreadable) else f"cannot be read ({reason_of(error)})"
