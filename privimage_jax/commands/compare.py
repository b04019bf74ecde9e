"""`privimage report W W …`: finished runs side by side, in one page. Not private."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from privimage_jax.commands import internal_page, ledger, release
from privimage_jax.errors import UserError
from privimage_jax.privacy.ledger import total_epsilon
from privimage_jax.report import comparison
from privimage_jax.report.document import MARKED_BYTES, is_page
from privimage_jax.report.gallery import shown_rows
from privimage_jax.run.stage import named
from privimage_jax.storage import durable, reading
from privimage_jax.storage.archives import Arrays
from privimage_jax.storage.workdir import Workdir

DEFAULT = "comparison.html"
MODE = 0o600
REMEDY = "finish the run by `privimage run`"


def write(paths: Sequence[str], target: Path) -> None:
    """Writes the page of the finished runs in the workdirs `paths` as `target`, readable by its owner only.

    Raises:
      UserError: for a workdir that is given twice or holds no finished run, and for a place that the page must not
        take.
    """
    internal_page.check_target(target, _is_ours)
    runs = [Workdir(path) for path in paths]
    roots = [run.root.resolve() for run in runs]
    if twice := [path for path, root in zip(paths, roots, strict=True) if roots.count(root) > 1]:
        raise UserError(f"{twice[-1]} is given twice; a run is compared with others.")
    found = [ledger.find(run.root).ledger.entries for run in runs]
    inputs = [_read(run, name, lines) for run, name, lines in zip(runs, _names(runs), found, strict=True)]
    joint = ledger.describe_joint(found, _names(runs)) if len(found) > 1 else ""
    page = comparison.render(inputs, joint[:1].upper() + joint[1:])
    durable.atomic_write_bytes(target, page.encode(), MODE)
    print(f"wrote {target}, which is not private: keep it internal")


def _is_ours(path: Path) -> bool:
    with reading.open_regular(path) as file:
        return is_page(comparison.KIND, file.read(MARKED_BYTES))


def _names(runs: Sequence[Workdir]) -> list[str]:
    """Names of the folders, or their paths where two have one name."""
    names = [run.root.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.root) for run in runs]


def _read(run: Workdir, name: str, lines: list[dict]) -> comparison.RunInputs:
    run.check()
    settings = release.finished_settings(run)
    evaluated = _evaluated_settings(run, settings)
    network = run.done_mark("train-query")
    images, labels, class_names = read_synthetic(run)
    rows = shown_rows(labels)  # the whole sets of many runs may be more than the memory holds
    return comparison.RunInputs(
        name=name,
        epsilon=total_epsilon(lines),
        delta=lines[0]["delta"],
        private=lines[0]["private"],
        # A later command may have left another config.json: it gives only what no stage depends on, such as paths.
        settings=_object(run.config_json) | settings | evaluated,
        query_network=network["fingerprint"] if network else str(run.root),  # unknown, it may be like no other
        results=_object(named("evaluate").artefact(run)) if evaluated else {},
        images=images[rows],
        labels=labels[rows],
        class_names=class_names,
    )


def read_synthetic(run: Workdir) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """The synthetic set of a finished run: images uint8 [N, H, W, C], labels int32 [N] and the classes.

    Raises:
      UserError: if it is missing or damaged.
    """
    synthetic = named("sample").artefact(run)
    with reading.user_errors(synthetic, REMEDY), Arrays(synthetic, remedy=REMEDY) as arrays:
        images, labels = arrays.read("images"), arrays.read("labels")
        class_names = [str(each) for each in arrays.read("class_names")]
        shaped = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3) and len(images) > 0
        if not shaped or labels.dtype != np.int32 or labels.shape != images.shape[:1]:
            raise reading.Unreadable("does not hold images and their labels")
        if not 0 <= labels.min() <= labels.max() < len(class_names):
            raise reading.Unreadable("holds a label that is no class")
    return images, labels, class_names


def _evaluated_settings(run: Workdir, settings: dict[str, Any]) -> dict[str, Any]:
    """What the evaluation of a finished run's synthetic set was made with; {} without a whole one of this very set.

    One that was repeated with other settings of its own is still of this set. A run of an earlier version, whose marks
    do not name what was read, evaluated before it reported.
    """
    mark, images = run.done_mark("evaluate") or {}, run.done_mark("sample") or {}
    made_with, made_from = mark.get("settings"), mark.get("reads", {})
    if not isinstance(made_with, dict) or not named("evaluate").artefact(run).exists():
        return {}
    of_this_set = isinstance(made_from, dict) and made_from.get("sample") in (None, images.get("fingerprint"))
    if not settings.get("evaluate.enabled") or not of_this_set:
        return {}
    return {key: value for key, value in made_with.items() if key.startswith("evaluate.")}


def _object(path: Path) -> dict:
    with reading.user_errors(path, REMEDY):
        value = reading.read_json(path)
        if not isinstance(value, dict):
            raise reading.Unreadable("is no JSON object")
    return value
