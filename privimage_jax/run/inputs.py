"""What a stage is given: the config, the run's folder, the devices, the data sets and the plan; all of it frozen."""

import contextlib
import dataclasses
import functools
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax import data
from privimage_jax.data import Dataset
from privimage_jax.data.inspection import plan
from privimage_jax.data.unreadable import UnreadableImages, of_sets
from privimage_jax.errors import UserError
from privimage_jax.privacy.ledger import Ledger
from privimage_jax.run import private_cache
from privimage_jax.run.plan import Plan, make_plan
from privimage_jax.run.stage import Stage
from privimage_jax.settings import derived, units
from privimage_jax.storage.durable import make_dir
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh, platform
from privimage_jax.training.precision import resolve
from privimage_jax.training.writers import progress

_HELD_OUT_IMAGES, _HELD_OUT_BYTES = 10_000, 1 << 28  # of public images, the most that are read to measure accuracy


class DataSets:
    """The image sets of a run, each read on first use and kept; without a folder as cache, in memory alone."""

    def __init__(self, config: ConfigDict, cache: Path | None):
        self._config = config
        self._cache = cache

    @functools.cached_property
    def sensitive(self) -> Dataset:
        """The sensitive training images."""
        return self._load("data", "train")

    @functools.cached_property
    def held_out(self) -> Dataset:
        """Real images held out for evaluation."""
        return self._load("data", "test")

    @functools.cached_property
    def public(self) -> Dataset:
        """The public images; their classes are the semantics."""
        return self._load("public", "train")

    @functools.cached_property
    def public_held_out(self) -> Dataset:
        """Some public images that teach nothing, in memory: whoever measures the query network needs no more.

        Raises:
          UserError: where the public set holds none out, or they cannot be read.
        """
        shape = self._config.data
        most = min(_HELD_OUT_IMAGES, max(1, _HELD_OUT_BYTES // (shape.image_size**2 * shape.channels)))
        return self._load("public", "test", most)

    def _load(self, section: str, part: str, most: int = 0) -> Dataset:
        """A part of a set; the first `most` of a fixed draw are read anew each time, all others are kept."""
        shape = self._config.data
        with contextlib.ExitStack() as stack:
            bar, shown = None, 0

            def on_progress(done: int, total: int) -> None:
                nonlocal bar, shown
                if bar is None:  # a cached set is there at once and needs no bar
                    bar = stack.enter_context(progress(f"reading {section} {part}", total, unit="images"))
                bar.advance(done - shown)
                shown = done

            return data.load(
                self._config[section],
                part,
                shape.image_size,
                shape.channels,
                self._cache if self._config[section].cache and not most else None,
                on_progress=on_progress,
                key=section,
                most=most,
                unit=self._config.privacy.unit if section == "data" else "image",
            )

    def read(self, needs_public: bool = True) -> None:
        """Reads every set that the run needs; images that cannot be read are told of all of them at once.

        Args:
          needs_public: whether the config runs a stage that looks at the public set.

        Raises:
          UserError: naming what is wrong with the data.
        """
        found = []
        for name in ("sensitive", *["held_out"] * self._config.evaluate.enabled, *["public"] * needs_public):
            try:
                getattr(self, name)
            except UnreadableImages as error:
                found.append(error)
        if found:
            raise of_sets(found)

    def check_counts(self) -> None:
        """Reads the sensitive training images and checks what their number decides.

        Raises:
          UserError: naming a setting that does not fit it.
        """
        declared, n = self._config.data.n, self.sensitive.n_records
        if declared and declared != n:
            raise UserError(
                f"config.data.n={declared}, but the sensitive training part has {n} "
                f"{units.unit(self._config).several}; give the true number, or 0 to count them."
            )
        derived.check_against_n(self._config, n)

    def check_fit(self, needs_public: bool = True) -> None:
        """Checks whether all sets fit each other and the settings.

        Args:
          needs_public: whether the config runs a stage that looks at the public set.

        Raises:
          UserError: naming the setting or the set that does not fit.
        """
        config, sensitive = self._config, self.sensitive
        if needs_public:
            data.check_compatible(sensitive, self.public)
            self._check_classes()
        if config.evaluate.enabled and self.held_out.n < 2:
            raise UserError(
                f"the held-out part of config.data has {self.held_out.n} image; hold out at least 2 by "
                "config.data.test_fraction, or give config.evaluate.enabled=False."
            )
        if config.evaluate.enabled and self.held_out.class_names != sensitive.class_names:
            raise UserError(
                f"the held-out part of config.data has the classes {', '.join(self.held_out.class_names)}, but the "
                f"training part has {', '.join(sensitive.class_names)}; give both the same classes."
            )

    def _check_classes(self) -> None:
        config, public = self._config, self.public
        with_images = len(np.unique(public.labels))
        try:
            derived.check_against_classes(config, self.sensitive.n_classes, public.n_classes, with_images)
        except derived.TooFewSemantics:
            for finding in plan.of_semantics(public, config):
                if finding.code not in config.public.accept:
                    raise UserError(finding.message) from None  # they are no classes, and hence too few
            raise


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What one stage of one run is given.

    Attributes:
      config: checked, with every "auto" that devices decide resolved.
      workdir: the run's folder.
      mesh: the devices.
      data: the image sets.
      stage: whose inputs these are; None before any stage runs.
      fingerprint: of the stage's settings and of all that it reads.
      microbatch: examples whose gradients a device holds at once; 0 where nothing is fine-tuned.
    """

    config: ConfigDict
    workdir: Workdir
    mesh: Mesh
    data: DataSets
    stage: Stage | None = None
    fingerprint: str = ""
    microbatch: int = 0

    @property
    def sensitive(self) -> Dataset:
        """The sensitive training images."""
        return self.data.sensitive

    @property
    def held_out(self) -> Dataset:
        """Real images held out for evaluation."""
        return self.data.held_out

    @property
    def public(self) -> Dataset:
        """The public images; their classes are the semantics."""
        return self.data.public

    @property
    def public_held_out(self) -> Dataset:
        """Some public images that teach nothing; a `UserError` where there are none."""
        return self.data.public_held_out

    @property
    def private_cache(self) -> Path:
        """Where features of real images and the like are kept: the run's own folder, or one that runs share."""
        return private_cache.folder(self.config, self.workdir)

    @property
    def plan(self) -> Plan:
        """The privacy plan for this data."""
        return self.plan_for(self.sensitive.n_records)

    def plan_for(self, n: int) -> Plan:
        """The privacy plan for N records; a ledger that was opened keeps its delta where the default was another."""
        lines = Ledger.open(self.workdir.ledger).entries
        return make_plan(self.config, n, lines[0]["delta"] if lines else None)

    @property
    def is_private(self) -> bool:
        """False when a fixed seed stands in for entropy (tests only)."""
        return self.config.privacy.fixed_seed < 0

    def key(self, purpose: str) -> jax.Array:
        """A public jax key, a function of config.seed and the purpose alone."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(purpose.encode()))

    def folder(self, stage: str) -> Path:
        """`internal/<stage>`, made if missing: what only this stage writes."""
        path = self.workdir.internal / stage
        make_dir(path, mode=0o700)
        return path

    def of(self, stage: Stage, fingerprint: str = "", microbatch: int = 0) -> "Inputs":
        """The same run's inputs, of this stage; the data sets are shared."""
        return dataclasses.replace(self, stage=stage, fingerprint=fingerprint, microbatch=microbatch)


def make_inputs(config: ConfigDict, workdir: Workdir, mesh: Mesh | None = None) -> Inputs:
    """The inputs of a run before any stage.

    What "auto" means on these devices is part of the settings from here on: a run does not go on in another format.

    Args:
      config: a checked configuration; it is not changed.
      workdir: the run's folder, which need not exist.
      mesh: the devices; all by default.
    """
    mesh = make_mesh() if mesh is None else mesh
    config = config.copy_and_resolve_references()
    config.precision = resolve(config.precision, platform(mesh))
    return Inputs(config, workdir, mesh, DataSets(config, private_cache.folder(config, workdir)))
