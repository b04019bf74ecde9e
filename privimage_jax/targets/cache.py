"""Keeps estimates in the user's cache folder, as compiling takes minutes."""

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import optax

from privimage_jax.settings import import_strings
from privimage_jax.storage import durable, fingerprints, reading
from privimage_jax.targets.cost import Estimate
from privimage_jax.targets.machine import Machine
from privimage_jax.targets.programs import Program
from privimage_jax.targets.topologies import compiler_versions


def default_folder() -> Path:
    """`privimage/forecast` in the folder for caches of this user."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "privimage" / "forecast"


class Cache:
    """Estimates by what decides them: the program's settings, the code, the machine, and the versions."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, program: Program, machine: Machine) -> Estimate | None:
        """What was found before; None if nothing was, or the file is damaged."""
        record = reading.read_record(self._path(program, machine))
        names = {field.name for field in dataclasses.fields(Estimate)}
        return Estimate(**record) if record.keys() == names else None

    def put(self, program: Program, machine: Machine, found: Estimate) -> None:
        """Keeps an estimate."""
        durable.make_dir(self.folder)
        path = self._path(program, machine)
        with durable.written_by_one(path):
            durable.atomic_write_json(path, dataclasses.asdict(found))

    def _path(self, program: Program, machine: Machine) -> Path:
        return self.folder / f"{fingerprints.fingerprint(_identity(program, machine))}.json"


def _identity(program: Program, machine: Machine) -> dict[str, Any]:
    libraries = [f"{module.__name__} {module.__version__}" for module in (jax, jaxlib, flax, optax)]
    names = [str(value) for key, value in program.settings.items() if key in ("model.name", "query_net.model")]
    own = [
        hashlib.sha256(import_strings.source_file(name, "config").read_bytes()).hexdigest()
        for name in names
        if ":" in name
    ]
    return {
        "program": [program.name, program.settings, program.rounds],
        "models": own,
        "code": fingerprints.code_digest(),
        "machine": [machine.platform, machine.devices, machine.memory, machine.description],
        "versions": [*libraries, *compiler_versions(machine), os.environ.get("XLA_FLAGS", "")],
    }
