"""What every stage is given: the config, the run's folder, the devices, the data sets and the privacy plan."""

import contextlib
import functools
import zlib
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax import data
from privimage_jax.data import Dataset
from privimage_jax.errors import UserError
from privimage_jax.stages.plan import Plan, make_plan
from privimage_jax.training.mesh import make_mesh, platform
from privimage_jax.training.precision import resolve
from privimage_jax.training.writers import headline, progress
from privimage_jax.workdir import Workdir, make_dir


class Context:
    """One run's surroundings. Data sets are read on first use and kept."""

    def __init__(self, config: ConfigDict, workdir: Workdir, mesh: Mesh | None = None):
        self.config = config
        self.workdir = workdir
        self.mesh = make_mesh() if mesh is None else mesh
        # What "auto" means here is part of the settings from now on: a run does not go on in another number format.
        config.precision = resolve(config.precision, platform(self.mesh))
        self.fingerprints: dict[str, str] = {}  # of each enabled stage, set by the pipeline
        self.microbatch = 0  # examples whose gradients a device holds at once, set by the pipeline

    def folder(self, stage: str) -> Path:
        """`internal/<stage>`, made if missing: what only this stage writes."""
        path = self.workdir.internal / stage
        make_dir(path, mode=0o700)
        return path

    def _load(self, section: str, part: str) -> Dataset:
        shape = self.config.data
        with contextlib.ExitStack() as stack:
            bar, shown = None, 0

            def on_progress(done: int, total: int) -> None:
                nonlocal bar, shown
                if bar is None:  # a cached set is there at once and needs no bar
                    bar = stack.enter_context(progress(f"reading {section} {part}", total, unit="images"))
                bar.advance(done - shown)
                shown = done

            cache = self.workdir.cache if self.config[section].cache else None
            return data.load(
                self.config[section],
                part,
                shape.image_size,
                shape.channels,
                cache,
                on_progress=on_progress,
                key=section,
            )

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
    def plan(self) -> Plan:
        """The privacy plan for this data."""
        return make_plan(self.config, self.sensitive.n)

    @property
    def is_private(self) -> bool:
        """False when a fixed seed stands in for entropy (tests only)."""
        return self.config.privacy.fixed_seed < 0

    def key(self, purpose: str) -> jax.Array:
        """A public jax key, a function of config.seed and the purpose alone."""
        return jax.random.fold_in(jax.random.key(self.config.seed), zlib.crc32(purpose.encode()))

    def check_data(self, needs_public: bool = True) -> None:
        """Reads every set and checks what depends on it; all errors of data come from here, before any mechanism runs.

        Raises:
          UserError: naming what is wrong with the data or with a setting that does not fit it.
        """
        declared = self.config.data.n
        if declared and declared != self.sensitive.n:
            raise UserError(
                f"config.data.n={declared}, but the sensitive training part has {self.sensitive.n} images; "
                "give the true number, or 0 to count them."
            )
        configs.check_against_n(self.config, self.sensitive.n)
        if needs_public:
            data.check_compatible(self.sensitive, self.public)
            configs.check_against_classes(self.config, self.sensitive.n_classes, self.public.n_classes)
        if self.config.evaluate.enabled and self.held_out.n < 2:
            raise UserError(
                f"the held-out part of config.data has {self.held_out.n} image; hold out at least 2 by "
                "config.data.test_fraction, or give config.evaluate.enabled=False."
            )
        self._warn_about_empty_classes()
        if self.config.evaluate.enabled and self.held_out.class_names != self.sensitive.class_names:
            raise UserError(
                f"the held-out part of config.data has the classes {', '.join(self.held_out.class_names)}, but the "
                f"training part has {', '.join(self.sensitive.class_names)}; give both the same classes."
            )

    def _warn_about_empty_classes(self) -> None:
        """Tells the operator, and nobody else, of classes without images."""
        sensitive = self.sensitive
        present = set(np.unique(sensitive.labels).tolist())
        if empty := [name for number, name in enumerate(sensitive.class_names) if number not in present]:
            headline(
                "data", "warning", f"no sensitive image is of class {', '.join(empty)}; it is generated all the same."
            )
