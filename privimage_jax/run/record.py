"""What a stage of the pipeline is: a record, and the mechanism in it that spends budget. `run.stage` holds them all."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.generators import sections as generator_sections
from privimage_jax.storage.workdir import Workdir

Settings = Callable[[ConfigDict], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """What of a stage looks at sensitive images and adds noise.

    Attributes:
      name: in the ledger and the report.
      switch: the setting that decides whether it is run.
      noise_multiplier: the setting that holds its noise, relative to its L2 sensitivity; "" for the one mechanism
        whose noise is solved for what all others leave of the budget.
      symbol: what the privacy plan calls its noise multiplier.
      sample_size: the setting that holds how many records are drawn for each of its Poisson samples, in expectation;
        "" where it looks at all records, once.
      samples: the setting that holds how many such samples there are.
      units: the values of `config.privacy.unit` for which its sensitivity holds; under another it is refused.
    """

    name: str
    switch: str
    noise_multiplier: str = ""
    symbol: str = "noise multiplier"
    sample_size: str = ""
    samples: str = ""
    units: tuple[str, ...] = ("image",)

    @property
    def costs(self) -> tuple[str, ...]:
        """The settings that decide what it costs, where its noise is not solved for."""
        return tuple(key for key in (self.noise_multiplier, self.sample_size, self.samples) if key)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
      name: of its command, its folder under `internal/`, and its done mark.
      module: that holds `run(inputs)`, and `sensitivity(config)` where the mechanism releases noisy counts.
      settings: what of the config decides its result, beside what it reads.
      reads: the stages whose artefacts it reads; those that the config does not run are left out.
      writes: its artefacts, paths in the workdir. It runs again when one is missing, and publishes no other.
      notes: files and folders under `internal/` that it leaves besides, for people. The stage does not run again where
        one is missing, as in the folder of an earlier version.
      notes_public_held_out: whether notes tell of public images that teach nothing, which decide no artefact.
      depends_on: what of the data decides its result: of "classes", "public", "sensitive", "held_out".
      enabled: whether the config runs it.
      mechanism: what spends budget, if anything does. Its data always decide the result.
      memory_settings: the settings that decide how much memory it takes, to be lowered where there is too little.
        One that spent budget depends on is left out when they are named.
      follows_precision: whether matrix products run as `config.precision` says; measures are exact, whatever that is.
      after: for a stage from outside the package, the one that it follows. One that looks at sensitive images without
        noise comes after all that publish.
      kept: whether `config.public_cache` may hold its artefacts for other runs, see `public_cache.keeps`.
      unread: artefacts of `reads` that have no say in what such a stage makes.
    """

    name: str
    module: str
    settings: Settings
    reads: Callable[[ConfigDict], tuple[str, ...]] = lambda config: ()
    writes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    notes_public_held_out: bool = False
    depends_on: tuple[str, ...] = ("classes",)
    enabled: Callable[[ConfigDict], bool] = lambda config: True
    mechanism: Mechanism | None = None
    memory_settings: tuple[str, ...] = ()
    follows_precision: bool = True
    after: str = "sample"
    kept: Callable[[ConfigDict], bool] = lambda config: False
    unread: tuple[str, ...] = ()

    def load(self) -> ModuleType:
        """The stage's module."""
        return importlib.import_module(self.module)

    def sees(self, part: str) -> bool:
        """Whether a part of the data, of `depends_on`, decides the result."""
        return part in self.depends_on or (part == "sensitive" and self.mechanism is not None)

    @property
    def sees_without_noise(self) -> bool:
        """Whether it looks at sensitive images and adds no noise: not even whether it fails may tell of them."""
        return "held_out" in self.depends_on or ("sensitive" in self.depends_on and self.mechanism is None)

    def spends(self, config: ConfigDict) -> bool:
        """Whether the config runs this stage's mechanism."""
        return self.mechanism is not None and self.enabled(config) and value(config, self.mechanism.switch) is not False

    def sensitivity(self, config: ConfigDict) -> float:
        """The L2 sensitivity of the noisy counts that the stage releases."""
        return float(self.load().sensitivity(config))

    def artefact(self, workdir: Workdir, number: int = 0) -> Path:
        """The path of one of `writes`."""
        return workdir.root / self.writes[number]

    def note(self, workdir: Workdir) -> Path:
        """The path of the first of `notes`."""
        return workdir.root / self.notes[0]

    @property
    def published(self) -> tuple[str, ...]:
        """Names in `release/` of what the stage may publish."""
        inside = [PurePosixPath(path) for path in self.writes]
        return tuple(path.name for path in inside if path.parts[0] == "release")


def keys(*names: str) -> Settings:
    """The settings of these sections and keys, without the places where things lie.

    >>> from privimage_jax.configs import base
    >>> keys("seed", "query")(base.get_config())
    {'query.k1': 1, 'query.noise_multiplier': 50.0, 'seed': 0}
    """
    return lambda config: configs.section(config, *names)


def of_generator(*names: str) -> Settings:
    """The settings of these sections and keys, and those that say what the generator is."""
    return lambda config: configs.section(config, *names, *generator_sections(config))


def value(config: ConfigDict, key: str) -> Any:
    """The value of a setting "section.key".

    >>> from privimage_jax.configs import base
    >>> value(base.get_config(), "query.noise_multiplier")
    50.0
    """
    return functools.reduce(lambda section, name: section[name], key.split("."), config)
