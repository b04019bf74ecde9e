"""Exports are read back, pixel by pixel, by this project's own sources and by others; each says what it promises."""

import errno
import io
import json
import os
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_files

from privimage_jax.commands import export
from privimage_jax.data import load
from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting
from privimage_jax.privacy.ledger import Ledger
from privimage_jax.privacy.rounding import plain_up
from privimage_jax.storage import durable
from privimage_jax.storage.workdir import Workdir

DELTA, N = 1.23451e-5, 12345
NAMES = ("zebra", "cat", "a/b", "a|b", "..", "ümlaut", "x y", "8", "1", "COM1", "last")
SETTINGS = {"name": "Cats & <dogs>", "data.class_names": list(NAMES), "sample.n": 44, "privacy.fixed_seed": -1}
LINKS = ("index", "kind", "previous")


def make_run(root, private=True, channels=3, class_names=NAMES, settings=SETTINGS):
    """What a finished run leaves of what an export reads."""
    run = Workdir(root)
    run.create()
    ledger = Ledger.open(run.ledger)
    terms = {"epsilon_target": 5.0, "delta": DELTA, "n": N, "accountant": "rdp", "adjacency": "zero-out"}
    terms |= {"mechanisms": ["semantic query"], "private": private} | ({} if private else {"note": "NOT PRIVATE: test"})
    fields = {"mechanism": "semantic query", "key_generation": 0, "noise_multiplier": 4.0, "l2_sensitivity": 1.0}
    ledger.spend(
        "gaussian", lambda spent: accounting.epsilon(accounting.events_from(spent), DELTA, "rdp"), terms, **fields
    )
    ledger.append("closed", mechanism="semantic query")
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(len(class_names), dtype=np.int32), 4)
    labels[labels == 1] = 0  # a class without images
    images = generator.integers(0, 256, (len(labels), 8, 8, channels)).astype(np.uint8)
    np.savez_compressed(run.release / "synthetic.npz", images=images, labels=labels, class_names=np.array(class_names))
    for stage in ("pretrain", "finetune", "sample", "report"):
        os.makedirs(run.internal / "done", exist_ok=True)
        run.mark_done(stage, {"fingerprint": "f", "settings": settings})
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def truth(run):
    """Images and labels, in the order of a tree of class folders."""
    with np.load(run.release / "synthetic.npz") as arrays:
        order = np.argsort(arrays["labels"], kind="stable")
        return arrays["images"][order], arrays["labels"][order]


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """The folder of an export in every format."""
    out = tmp_path_factory.mktemp("out") / "all"
    export.run(run, list(export.FORMATS), out)
    return out


def test_the_names_of_an_export(exported):
    assert {path.name for path in exported.iterdir()} == {
        "png", "synthetic.README.md", "synthetic.npz", "synthetic.zip", "tfds"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("source", "name"), [("npz", "synthetic.npz"), ("folder", "png"), ("zip", "synthetic.zip"), ("tfds", "tfds")]
)
def test_this_project_reads_it_back(exported, truth, source, name):
    settings = {"source": source, "path": str(exported / name), "test_fraction": 0.0, "test_split": ""}
    if source in ("folder", "zip"):  # where a class without images has a folder, but is none unless it is declared
        settings["class_names"] = tuple(sorted(folder.name for folder in (exported / "png").iterdir()))
    dataset = load(settings, "train", 8, 3, None)
    order = np.argsort(dataset.labels, kind="stable")
    np.testing.assert_array_equal(dataset.images[order], truth[0])
    np.testing.assert_array_equal(dataset.labels[order], truth[1])
    if source in ("npz", "tfds"):
        assert dataset.class_names == NAMES
    else:
        assert dataset.class_names[:4] == ("00_zebra", "01_cat", "02_a_b", "03_a_b")


def test_scikit_learn_and_pillow_read_the_folders(exported, truth):
    files = load_files(exported / "png", load_content=False, shuffle=False)
    np.testing.assert_array_equal(files.target, truth[1])
    np.testing.assert_array_equal([np.asarray(Image.open(name)) for name in files.filenames], truth[0])


def test_pillow_reads_the_zip(exported, truth):
    with zipfile.ZipFile(exported / "synthetic.zip") as archive:
        assert archive.testzip() is None
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names]
    np.testing.assert_array_equal(images, truth[0])
    np.testing.assert_array_equal([int(name.partition("_")[0]) for name in names], truth[1])


def test_numpy_reads_the_archive(exported, run):
    assert (exported / "synthetic.npz").read_bytes() == (run.release / "synthetic.npz").read_bytes()
    with np.load(exported / "synthetic.npz") as arrays:
        assert arrays["images"].shape == (44, 8, 8, 3) and tuple(arrays["class_names"]) == NAMES


def test_tfds_reads_its_folder(exported):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(exported / "tfds")
    assert builder.info.features["label"].names == list(NAMES)
    assert builder.info.features["image"].shape == (8, 8, 3)
    assert builder.info.splits["train"].num_examples == 44 == len(builder.as_data_source("train"))


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_same_release_gives_the_same_bytes(run, exported, tmp_path):
    export.run(run, ["tfds", "zip", "png", "npz"], tmp_path / "again")
    assert contents(tmp_path / "again") == contents(exported)


def test_the_datasheet(exported, run):
    with zipfile.ZipFile(exported / "synthetic.zip") as archive:
        sheets = [archive.read("README.md").decode()]
    sheets += [path.read_text() for path in sorted(exported.rglob("*README.md"))]
    assert len({sheet.partition("## Loading")[0] for sheet in sheets}) == 1 and len(set(sheets)) == 4
    sheet = sheets[0]
    spent = Ledger.open(run.ledger).entries[1]["epsilon"]
    assert "ε = 5 and δ = 0.00001235: no outcome" in sheet and "each one of the 12,345 sensitive images" in sheet
    assert "NOT PRIVATE" not in sheet
    assert f"| semantic query | 4.0 |  |  | {plain_up(spent)} |" in sheet and float(plain_up(spent)) >= spent
    assert "44 synthetic images, 8×8 RGB, in 11 classes" in sheet
    for row in ("| 0 | zebra | 00_zebra | 8 |", "| 1 | cat | 01_cat | 0 |", "| 3 | a\\|b | 03_a_b | 4 |"):
        assert row in sheet
    assert "# Cats & \\<dogs\\>\n" in sheet and "## Licence\n\n*To be filled in by the owner" in sheet
    assert 'name = "Cats & <dogs>"\nprivacy.fixed_seed = -1\nsample.n = 44\n' in sheet
    assert str(run.root) not in "".join(sheets)


def test_the_snippets_load_the_file_under_its_own_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    export.run(run, ["npz"], tmp_path / 'cat\'s "best".npz')
    export.run(run, ["zip"], tmp_path / "cats.zip")
    with zipfile.ZipFile("cats.zip") as archive:
        sheets = [(tmp_path / 'cat\'s "best".README.md').read_text(), archive.read("README.md").decode()]
    for sheet in sheets:
        loaded = {}
        exec(sheet.partition("```python\n")[2].partition("```")[0], loaded)
        assert len(loaded["images"]) == len(loaded["labels"]) == 44


@pytest.mark.parametrize("channels", [1, 3])
def test_a_run_that_is_not_private_says_so(tmp_path, channels, capsys):
    run = make_run(tmp_path / "run", private=False, channels=channels)
    export.run(run, ["tfds"], tmp_path / "out")
    assert capsys.readouterr().out == f"exported 44 images in 11 classes to {tmp_path / 'out'} (NOT PRIVATE)\n"
    sheet = (tmp_path / "out" / "README.md").read_text()
    assert "**NOT PRIVATE: test. This set promises nothing.**" in sheet and "(ε, δ)-differential" not in sheet
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert info["description"].startswith("NOT PRIVATE: 44 synthetic images")
    settings = {"path": str(tmp_path / "out"), "test_split": "", "test_fraction": 0.0}
    assert load(settings, "train", 8, channels, None).n == 44


def test_a_setting_that_was_chosen_by_a_mechanism(tmp_path):
    run = make_run(tmp_path / "run", settings=SETTINGS | {"sampler_choice.enabled": True, "sample.guidance": 0.0})
    with pytest.raises(UserError, match="sampler.json is missing; restore it"):
        export.read(run)
    (run.release / "sampler.json").write_text(json.dumps({"setting": "guidance", "chosen": 1.5}))
    assert "sample.guidance = 1.5\n" in export.datasheet(export.read(run), "png", "cats")


def test_one_class_in_every_format(tmp_path):
    run = make_run(tmp_path / "run", class_names=("all",))
    export.run(run, list(export.FORMATS), tmp_path / "out")
    for source, name in (("folder", "png"), ("zip", "synthetic.zip"), ("tfds", "tfds")):
        settings = {"source": source, "path": str(tmp_path / "out" / name), "test_fraction": 0.0, "test_split": ""}
        assert load(settings, "train", 8, 3, None).n == 4


def without_set(run):
    (run.release / "synthetic.npz").unlink()


def unfinished(run):
    run.clear_mark("report")


def forged(run):
    epsilon = Ledger.open(run.ledger).entries[1]["epsilon"]
    lines = [json.loads(line) for line in run.ledger.read_text().splitlines()]
    lines[1]["epsilon"] = round(epsilon / 2, 6)
    run.ledger.unlink()
    book = Ledger.open(run.ledger)
    for line in lines:
        book.append(line["kind"], **{name: value for name, value in line.items() if name not in LINKS})


def cut_short(run):
    run.ledger.write_text("".join(run.ledger.read_text().splitlines(keepends=True)[:2]))


def drawn_again(run):
    run.mark_done("sample", {"fingerprint": "g", "settings": {"sample.n": 45}})


def damaged(run):
    content = bytearray((run.release / "synthetic.npz").read_bytes())
    content[200] ^= 255
    (run.release / "synthetic.npz").write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_set, "holds no finished run; finish it with `privimage run`"),
        (unfinished, "holds no finished run"),
        (forged, "line 2 of .*ledger.jsonl states epsilon .* do not rely on this ledger"),
        (cut_short, "line 3 of .*ledger.jsonl is missing"),
        (drawn_again, "synthetic.npz was made with other settings than its report"),
        (damaged, "synthetic.npz.* `privimage run` makes it again"),
    ],
)
def test_what_cannot_be_vouched_for_is_not_exported(tmp_path, change, message):
    run = make_run(tmp_path / "run")
    change(run)
    with pytest.raises(UserError, match=message):
        export.run(run, ["npz"], tmp_path / "out.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", ["npz", "png", "zip", "tfds", "npz,png"])
def test_a_full_disk_leaves_nothing(run, tmp_path, monkeypatch, name):
    def full(source, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable.os, "replace", full)
    with pytest.raises(UserError, match="cannot write .*: the disk is full; free some space"):
        export.run(run, name.split(","), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_class_name_that_tfds_cannot_keep(tmp_path):
    run = make_run(tmp_path / "run", class_names=("one", "two\nlines"))
    with pytest.raises(UserError, match=r"the class name 'two\\nlines' on a line of its own; choose another format"):
        export.run(run, ["tfds"], tmp_path / "out")
    export.run(run, ["png"], tmp_path / "out")


def test_the_command(privimage, run, tmp_path):
    out = tmp_path / "cats.npz"
    given = ("export", "--workdir", run.root, "--format", "npz", "--out")
    assert privimage(*given, out).succeeds().out == f"exported 44 images in 11 classes to {out}\n"
    assert {path.name for path in tmp_path.iterdir()} == {"cats.npz", "cats.README.md"}
    privimage(*given, out).refuses(f"--out={out} exists, and nothing is written over")
    out.unlink()
    privimage(*given, out).refuses("cats.README.md exists, and the datasheet is to lie there")
    privimage(*given, tmp_path / "no" / "cats.npz").refuses("no/cats.npz cannot be written", "a writable folder")
    privimage(*given, tmp_path / "cats.README.md" / "x").refuses("cannot be written (Not a directory)")
    privimage("export", "--workdir", run.root, "--format", "npz,jpeg", "--out", tmp_path / "x").refuses(
        "--format: 'jpeg' is not known; give one of npz, png, zip, tfds"
    )
    privimage("export", "--workdir", tmp_path / "nowhere", "--format", "zip", "--out", out).refuses(
        "nowhere holds no finished run"
    )
    privimage("export", "--workdir", run.root, "--out", out).refuses("--format is missing")
    assert {path.name for path in tmp_path.iterdir()} == {"cats.README.md"}
