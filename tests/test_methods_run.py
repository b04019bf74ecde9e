"""Runs by the name of a method: what is spent, taught and published, and workdirs from before there were names."""

import json
import shutil

import numpy as np
import pytest
from pipelines import CLASSES, run, tiny_config

from privimage_jax.errors import UserError
from privimage_jax.run.stage import named
from privimage_jax.settings import methods
from privimage_jax.storage.durable import atomic_write_json, atomic_write_npz
from privimage_jax.storage.fingerprints import fingerprint, jsonable
from privimage_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("programs_kept")


def make_config(folder, name: str):
    """A tiny experiment, without a look at real images, by the name of a method."""
    config = tiny_config(folder)
    config.evaluate.enabled = config.report.public_neighbours = False
    methods.apply(config, name)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the data, and a run of PDP-Diffusion on it."""
    folder = tmp_path_factory.mktemp("methods")
    return folder, run(make_config(folder, "pdp_diffusion"), folder / "run")


def test_the_report_names_the_method_and_the_config_is_resolved(finished):
    _, workdir = finished
    page = (workdir.release / "report.html").read_text()
    assert "<dt>method</dt><dd>pdp_diffusion: pre-trains on all public images" in page and "2302.13861" in page
    stored = json.loads(workdir.config_json.read_text())
    assert (stored["method"], stored["selection.method"], stored["warmup.enabled"]) == ("pdp_diffusion", "all", False)
    assert "gaussian" not in workdir.ledger.read_text()


def test_a_run_with_no_name_shows_none(finished, tmp_path):
    folder, _ = finished
    config = make_config(folder, "dpdm")
    config.method = ""
    workdir = run(config, tmp_path / "run")
    page = (workdir.release / "report.html").read_text()
    assert "<dt>method</dt><dd>none</dd>" in page and "arXiv" not in page  # that of the selection alone
    assert not (workdir.release / "semantics.json").exists()


def test_naming_the_method_of_a_finished_run_makes_its_page_alone_again(finished, capsys):
    """As where it was begun before there were names."""
    folder, workdir = finished
    config = make_config(folder, "pdp_diffusion")
    ledger = workdir.ledger.read_bytes()
    for name in ("", "pdp_diffusion"):
        config.method = name
        capsys.readouterr()
        run(config, workdir.root)
        said = capsys.readouterr().out
        assert "stale" in said and said.count("skipped") == 4
    assert workdir.ledger.read_bytes() == ledger


def as_before_labels_were_folded(config) -> dict:
    """What an earlier version recorded of the selection: under the same name, and without how labels are folded."""
    settings = named("select").settings(config)
    assert settings.pop("selection.labels") == "folded"
    return {"fingerprint": fingerprint(settings), "settings": jsonable(settings)}


def test_all_images_without_labels_under_the_same_name_are_selected_again(finished, tmp_path):
    config = make_config(finished[0], "pdp_diffusion")
    workdir = run(config, tmp_path / "run", last="select")
    workdir.mark_done("select", as_before_labels_were_folded(config))
    subset = workdir.root / named("select").writes[0]
    atomic_write_npz(subset, rows=np.arange(48), labels=np.full(48, CLASSES, np.int32))
    run(config, workdir.root, last="select")
    assert set(np.load(subset)["labels"].tolist()) == {*range(CLASSES)}


def test_what_has_spent_on_images_without_labels_is_refused(finished, tmp_path):
    config = make_config(finished[0], "pdp_diffusion")
    workdir = Workdir(shutil.copytree(finished[1].root, tmp_path / "run"))
    atomic_write_json(workdir.internal / "select" / "started.json", as_before_labels_were_folded(config))
    spent = workdir.internal / "finetune" / "started.json"
    atomic_write_json(spent, {**json.loads(spent.read_text()), "fingerprint": "of the other meaning"})
    with pytest.raises(UserError, match=r"without config\.selection\.labels, which is now 'folded'; go on with the"):
        run(config, workdir.root)
