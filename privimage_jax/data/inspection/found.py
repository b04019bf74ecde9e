"""What was found of one image set, as machines and people are told it."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from privimage_jax.data.dataset import Dataset
from privimage_jax.data.inspection.findings import Finding

UNREADABLE = "unreadable"  # the code of a set that cannot be read at all

_OF_COPIES = ("code", "image", "copy_of")


@dataclasses.dataclass(frozen=True)
class Found:
    """One image set: the sensitive or the public one.

    Attributes:
      source: its kind.
      labels_from: where the labels were found.
      n: number of training images.
      classes: number of training images of each class.
      parts: number of images of each part; of a set without parts of its own, as the run divides it.
      sizes: number of stored images of each size.
      depths: number of stored images of each kind of pixels.
      people: how many people there are and how many images there are of one at most; None where that is not known.
      unit: what one record is, "image" or "person"; "" of a public set, of which nothing is protected.
      n_records: number of records to train on, the N of `config.data.n`; 0 of a public set.
      copies: images that are there twice, up to `copies.LISTED`: "code" of the finding, "image" and "copy_of".
      findings: what looks wrong.
    """

    source: str
    labels_from: str = ""
    n: int = 0
    classes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    depths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    people: Mapping[str, int] | None = None
    unit: str = ""
    n_records: int = 0
    copies: Sequence[Mapping[str, str]] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def warnings(self) -> list[Finding]:
        """Findings that stop no run."""
        return [finding for finding in self.findings if not finding.refuses]

    @property
    def refusals(self) -> list[Finding]:
        """Findings that do."""
        return [finding for finding in self.findings if finding.refuses]

    def with_findings(self, findings: Iterable[Finding], accept: Iterable[str] = ()) -> "Found":
        """The same with more findings, of which those that `accept` names refuse no run."""
        accepted = {*accept}
        more = [
            dataclasses.replace(finding, refuses=finding.refuses and finding.code not in accepted)
            for finding in findings
        ]
        return dataclasses.replace(self, findings=(*self.findings, *more))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; its keys are the same for every source."""
        values = dataclasses.asdict(self)
        del values["findings"]
        values["copies"] = [*values["copies"]]
        for name, findings in (("warnings", self.warnings), ("refusals", self.refusals)):
            values[name] = [{"code": finding.code, "message": finding.message} for finding in findings]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Found":
        """The inverse of `to_json`, up to the order of warnings among refusals.

        Raises:
          LookupError, TypeError, ValueError: if it is not what `to_json` gives.
        """
        given = dict(values)
        findings = [
            Finding(str(each["code"]), str(each["message"]), refuses)
            for name, refuses in (("warnings", False), ("refusals", True))
            for each in given.pop(name)
        ]
        copies = [{name: str(each[name]) for name in _OF_COPIES} for each in given.pop("copies", ())]
        return cls(**given, copies=tuple(copies), findings=tuple(findings))


def describe(dataset: Dataset, held_out: Dataset | None = None, is_public: bool = False) -> Found:
    """What was found, without findings.

    Args:
      dataset: the training part.
      held_out: the held-out part, where it was read.
      is_public: whether nothing of it is protected.
    """
    facts, counts = dataset.facts, np.bincount(dataset.labels, minlength=dataset.n_classes)
    parts = facts.parts or {"train": dataset.n} | ({} if held_out is None else {"test": held_out.n})
    people = None
    if dataset.people is not None:
        images = np.bincount(dataset.people)
        people = {"count": int(np.count_nonzero(images)), "most_images_of_one": int(images.max())}
    return Found(
        source=facts.source,
        labels_from=facts.labels_from,
        n=dataset.n,
        classes=dict(zip(dataset.class_names, counts.tolist(), strict=True)),
        parts=_counts(parts),
        sizes=_counts(facts.sizes),
        depths=_counts(facts.depths),
        people=people,
        unit="" if is_public else dataset.unit,
        n_records=0 if is_public else dataset.n_records,
    )


def _counts(given: Mapping[str, int]) -> dict[str, int]:
    """As JSON has them: a source from elsewhere may count with NumPy."""
    return {str(name): int(count) for name, count in given.items()}
