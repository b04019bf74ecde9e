"""What a finished run has released, read once its ledger is verified."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from privimage_jax.errors import UserError
from privimage_jax.privacy.verification import verify, verify_artefacts
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.run.stage import named
from privimage_jax.stages import sample
from privimage_jax.storage import reading
from privimage_jax.storage.archives import Arrays
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.writers import encode_png

_MADE_BY = ("pretrain", "finetune", "sample")  # what a run always does


@dataclasses.dataclass(frozen=True)
class Release:
    """What is exported, all of it public.

    Attributes:
      images: of the synthetic set, uint8 [N, H, W, C].
      labels: int32 [N].
      class_names: the declared classes.
      npz: the content of its file.
      ledger: the lines.
      ledger_digest: SHA-256 of the ledger file.
      settings: of the run, without paths, and with the sampler's setting that a mechanism chose.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    npz: bytes
    ledger: list[dict[str, Any]]
    ledger_digest: str
    settings: dict[str, Any]

    def folders(self) -> list[str]:
        """A folder's name for each class; in the order of the alphabet they are in the order of the labels."""
        digits = len(str(len(self.class_names) - 1))
        return [f"{label:0{digits}d}_{_safe(name)}" for label, name in enumerate(self.class_names)]

    def pictures(self) -> Iterator[tuple[str, bytes]]:
        """Name, such as "3_cat/000012.png", and content of every image as a PNG file."""
        folders, digits = self.folders(), max(6, len(str(len(self.labels) - 1)))
        for row, (image, label) in enumerate(zip(self.images, self.labels, strict=True)):
            yield f"{folders[label]}/{row:0{digits}d}.png", encode_png(image)


def read(workdir: Workdir) -> Release:
    """The release of a finished run, once its ledger is verified.

    Raises:
      UserError: if something is missing, damaged, older than what it describes, or does not verify.
    """
    path, settings = named("sample").artefact(workdir), finished_settings(workdir)
    ledger = open_ledger(workdir)
    verify(ledger, finished=True)
    verify_artefacts(ledger, {"release": workdir.release})
    remedy = "delete it, and `privimage run` makes it again"
    with reading.user_errors(path, remedy), Arrays(path, remedy=remedy) as arrays:
        shape, names = arrays.headers["images"][0], arrays.read("class_names")
        if len(shape) != 4 or shape[-1] not in (1, 3) or names.dtype.kind != "U" or names.ndim != 1:
            raise reading.Unreadable("does not hold images [N, H, W, C] and the names of classes")
    if settings.get("sampler_choice.enabled"):
        choice = named("choose-sampler").artefact(workdir)
        with reading.user_errors(choice, "restore it from a copy"):
            chosen = reading.read_json(choice)
            settings = settings | {f"sample.{chosen['setting']}": chosen["chosen"]}
    class_names = tuple(names.tolist())
    images, labels = sample.read_synthetic(path, shape, len(class_names), remedy)
    digest = hashlib.sha256(workdir.ledger.read_bytes()).hexdigest()
    return Release(images, labels, class_names, path.read_bytes(), ledger.entries, digest, settings)


def finished_settings(workdir: Workdir) -> dict[str, Any]:
    """The settings that the synthetic set and the report of a finished run were made with, without paths.

    Raises:
      UserError: if something is missing or older than what it describes.
    """
    path = named("sample").artefact(workdir)
    marks: dict[str, Any] = {name: (workdir.done_mark(name) or {}).get("settings") for name in (*_MADE_BY, "report")}
    settings = marks["report"]
    if not path.exists() or not all(isinstance(mark, dict) for mark in marks.values()):
        raise UserError(f"{workdir.root} holds no finished run; finish it with `privimage run`.")
    if any(settings[key] != value for mark in marks.values() for key, value in mark.items() if key in settings):
        raise UserError(f"{path} was made with other settings than its report; finish the run with `privimage run`.")
    return settings


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)[:50]
