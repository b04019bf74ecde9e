"""Folders as finished runs leave them, made in a moment."""

import json
import pathlib

import numpy as np

from privimage_jax.privacy.ledger import Ledger
from privimage_jax.storage.workdir import Workdir

EVALUATION = {"fid": 3.5, "precision": 0.5, "recall": 0.25, "accuracy_synthetic": 0.75, "private": False}
TERMS = {  # of a ledger, and the one mechanism that it holds
    "epsilon_target": 5.0,
    "delta": 1e-5,
    "n": 1000,
    "adjacency": "zero-out of one record",
    "accountant": "rdp",
    "mechanisms": ["query"],
    "private": True,
}
QUERY = {"mechanism": "query", "key_generation": 0, "noise_multiplier": 8.0, "l2_sensitivity": 1.0}
SETTINGS = {"name": "tiny", "privacy.epsilon": 5.0, "selection.k2": 1, "sample.guidance": 0.0, "evaluate.enabled": True}
STAGES = ("train-query", "pretrain", "finetune", "sample", "report", "evaluate")


def mark(root: pathlib.Path, stage: str, settings: dict, **more: dict) -> None:
    """Marks a stage as done: with the settings of its own section, the report with all."""
    own = {key: value for key, value in settings.items() if stage == "report" or key.startswith(f"{stage}.")}
    Workdir(root).mark_done(stage, {"fingerprint": "f", "settings": own, **more})


def make_run(
    root: pathlib.Path,
    settings: dict | None = None,
    evaluation: dict | None = None,
    class_names: tuple[str, ...] = ("cat", "dog"),
    per_class: int = 3,
    side: int = 8,
) -> pathlib.Path:
    """A workdir with a ledger of one Gaussian mechanism, a config, an evaluation (unless {}) and a synthetic set."""
    run = Workdir(root)
    run.create()
    Ledger.open(root / "release" / "ledger.jsonl").spend("gaussian", lambda events: 0.5, TERMS, **QUERY)
    settings = {**SETTINGS, **(settings or {})}
    run.config_json.write_text(json.dumps(settings))
    for stage in STAGES:
        mark(root, stage, settings)
    if evaluation != {}:
        (root / "internal" / "evaluation.json").write_text(json.dumps({**EVALUATION, **(evaluation or {})}))
    labels = np.tile(np.arange(len(class_names), dtype=np.int32), per_class)
    images = np.random.default_rng(len(class_names)).integers(0, 256, (len(labels), side, side, 1), np.uint8)
    names = np.array(class_names)
    np.savez(root / "release" / "synthetic.npz", images=images, labels=labels, class_names=names)
    return root
