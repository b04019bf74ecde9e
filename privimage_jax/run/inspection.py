"""The look at the image sets with which a run begins, before anything is spent; `privimage inspect` is the same look.

What it finds comes from sensitive images without noise: it is told on the console and written under `internal/`, and
no stage depends on it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from privimage_jax import config as configs
from privimage_jax.cluster.processes import on_process_zero
from privimage_jax.data.dataset import Dataset
from privimage_jax.data.inspection import copies, findings, found, people, plan
from privimage_jax.data.inspection.codes import FINDINGS
from privimage_jax.data.inspection.findings import Finding
from privimage_jax.data.inspection.found import Found
from privimage_jax.data.inspection.statistics import Statistics, measure
from privimage_jax.errors import UserError
from privimage_jax.report import inspection as page
from privimage_jax.run.inputs import Inputs
from privimage_jax.storage import durable, fingerprints, reading
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.writers import headline

MODE = 0o600  # of files that show sensitive images
_OF = "of"  # in internal/inspection.json: what the look was at


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What a look at the sets of a run found.

    Attributes:
      title: of the config.
      found: by the section of the config, "data" and "public"; the latter is missing where no stage looks at that set.
      shown: the sets as the networks see them.
    """

    title: str
    found: Mapping[str, Found]
    shown: tuple[page.ShownSet, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object with both sections; null for one that is missing."""
        return {name: self.found[name].to_json() if name in self.found else None for name in ("data", "public")}

    def render(self) -> str:
        """As a page for people."""
        return page.render(self.title, self.found, self.shown)

    def with_refusals(self, section: str, source: str, refusals: Sequence[Finding]) -> "Inspection":
        """The same with what else is wrong with a section, also with one of which nothing can be read."""
        found = self.found.get(section, Found(source))
        known = {finding.message for each in self.found.values() for finding in each.refusals}
        if not (more := [finding for finding in refusals if finding.message not in known]):
            return self
        found = found.with_findings(more)
        return dataclasses.replace(self, found={**self.found, section: found})


def look(config: ConfigDict, sensitive: Dataset | None, held_out: Dataset | None, public: Dataset | None) -> Inspection:
    """Looks at every image once.

    Args:
      config: a checked configuration.
      sensitive: the training images; None where they cannot be read.
      held_out: None where they are not used or cannot be read.
      public: likewise.
    """
    training, test, teachers = (
        None if each is None else measure(each.images) for each in (sensitive, held_out, public)
    )
    seen = {"data": Found(config.data.source)}
    shown = []
    if sensitive is not None and training is not None:
        problems = _of_sensitive(config, sensitive, training, held_out, test, teachers)
        described = found.describe(sensitive, held_out).with_findings(problems, config.data.accept)
        listed = copies.listed(
            (training, sensitive.facts),
            None if held_out is None or test is None else (test, held_out.facts),
            None if public is None or teachers is None else (teachers, public.facts),
        )
        seen["data"] = dataclasses.replace(described, copies=tuple(listed))
        shown.append(page.ShownSet("data", "training", sensitive, training.histogram))
    if held_out is not None and test is not None:
        shown.append(page.ShownSet("data", "held out", held_out, test.histogram))
    if public is not None and teachers is not None:
        problems = _of_public(config, public, teachers)
        seen["public"] = found.describe(public, is_public=True).with_findings(problems, config.public.accept)
        shown.append(page.ShownSet("public", "public", public, teachers.histogram))
    return Inspection(config.name, seen, tuple(shown))


def _of_sensitive(
    config: ConfigDict,
    dataset: Dataset,
    training: Statistics,
    held_out: Dataset | None,
    test: Statistics | None,
    public: Statistics | None,
) -> Iterator[Finding]:
    yield from findings.of_pixels(training, dataset.facts, "config.data", config.data.intensity, config.data.accept)
    yield from findings.of_classes(dataset, "config.data", is_public=False)
    yield from plan.of_sensitive(dataset, config)
    yield from people.of_unit(dataset)
    yield from people.alike(dataset, held_out)
    if held_out is not None:
        yield from people.across_parts(dataset, held_out)
    yield from copies.within(training, is_public=False)
    if test is not None:
        yield from copies.across_parts(training, test)
    if public is not None:
        yield from copies.of_public(training, public)
    yield from findings.of_notes(dataset.facts.notes, () if held_out is None else held_out.facts.notes)


def _of_public(config: ConfigDict, dataset: Dataset, statistics: Statistics) -> Iterator[Finding]:
    yield from findings.of_pixels(
        statistics, dataset.facts, "config.public", config.public.intensity, config.public.accept
    )
    yield from plan.of_semantics(dataset, config)
    yield from findings.of_classes(dataset, "config.public", is_public=True)
    yield from plan.of_public(dataset, config)
    yield from copies.within(statistics, is_public=True)
    yield from findings.of_notes(dataset.facts.notes)


def before_a_run(inputs: Inputs, needs_public: bool = True) -> None:
    """Looks at all images that the run is going to use, writes what it found under `internal/`, and tells the warnings.

    Args:
      inputs: of a run whose sets and settings are checked.
      needs_public: whether the config runs a stage that looks at the public set.

    Raises:
      UserError: where the run must not go on.
    """
    held_out = inputs.held_out if inputs.config.evaluate.enabled else None
    _look_and_tell(inputs, held_out, inputs.public if needs_public else None)


@on_process_zero
def _look_and_tell(inputs: Inputs, held_out: Dataset | None, public: Dataset | None) -> None:
    sets = (inputs.sensitive, held_out, public)
    of = fingerprints.fingerprint(
        [
            fingerprints.code_digest(),
            {key: repr(value) for key, value in configs.flatten(inputs.config)},
            [each and (each.digest(), repr(each.facts)) for each in sets],
        ]
    )
    json_path, page_path = paths(inputs.workdir)
    kept = _kept(json_path, of) if page_path.exists() else None
    if kept is None:  # a run that goes on has looked already
        inspection = look(inputs.config, *sets)
        write(inputs.workdir, inspection, of)
    seen = inspection.found if kept is None else kept
    for name, each in seen.items():
        for finding in each.warnings:
            headline(name, "warning", finding.message)
    if sentence := not_accepted(inputs.config, seen):
        raise UserError(f"{sentence} (see {page_path}).")


def paths(run: Workdir) -> tuple[Path, Path]:
    """Where the JSON object and the page of a workdir lie."""
    return run.internal / "inspection.json", run.internal / "inspection.html"


def write(run: Workdir, inspection: Inspection, of: str = "") -> None:
    """Writes what was found under `internal/`.

    Args:
      run: the workdir.
      inspection: what was found.
      of: a fingerprint of what it was found in; a run that meets it again does not look again.
    """
    json_path, page_path = paths(run)
    durable.atomic_write_bytes(page_path, inspection.render().encode(), MODE)
    durable.atomic_write_json(json_path, inspection.to_json() | {_OF: of}, MODE)


def _kept(path: Path, of: str) -> dict[str, Found] | None:
    """What an earlier look at the same found; None without a whole record of it."""
    record = reading.read_record(path)
    try:
        if record.pop(_OF) != of:
            return None
        return {name: Found.from_json(values) for name, values in record.items() if values is not None}
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def not_accepted(config: ConfigDict, seen: Mapping[str, Found]) -> str:
    """What stops a run that may be accepted, and how it goes on all the same.

    Returns:
      A sentence without its full stop; "" if there is nothing of the kind.
    """
    said, ways = [], []
    for name, each in seen.items():
        if stopping := [finding for finding in each.refusals if finding.code in FINDINGS]:
            said += [f"{finding.seen} ({finding.code})" for finding in stopping]
            accepted = dict.fromkeys((*config[name].accept, *(finding.code for finding in stopping)))
            ways.append(f"config.{name}.accept={','.join(accepted)}")  # which a shell takes as it is
    return f"{', and '.join(said)}; mend that, or give {' and '.join(ways)} to go on all the same" if said else ""
