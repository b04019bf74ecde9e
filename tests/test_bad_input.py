"""Bad data, a workdir that does not fit, a full disk: one sentence, exit status 2, and earlier results stay intact."""

import contextlib
import json
import pathlib
import re
import resource
import shutil
import signal
import time

import numpy as np
import pytest
from commands import finish, start, write_config
from kept import keep_programs
from PIL import Image
from pipelines import CLASSES, SEMANTICS, SIDE, release_bytes, write_npz

from privimage_jax.run.mechanism import Mechanism
from privimage_jax.stages import finetune, pretrain, query, report, sample, selection, train_query
from privimage_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("programs_kept")

QUICK = ("--config.privacy.accountant=rdp", "--config.evaluate.enabled=False")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the tiny data and its config file."""
    folder = tmp_path_factory.mktemp("bad_input")
    write_config(folder, folder)
    return folder


@pytest.fixture
def run(privimage, folder, tmp_path):
    """`run(*settings, command="run", workdir=…) -> Result` of the tiny config."""

    def call(*settings, command="run", workdir=tmp_path / "run"):
        return privimage(command, "--config", folder / "tiny.py", "--workdir", workdir, *QUICK, *settings)

    return call


@pytest.fixture
def finished(run, folder):
    """The workdir of a finished run; a test must leave its release and its marks as they are."""
    workdir = folder / "finished"
    run(workdir=workdir).succeeds()
    before = release_bytes(Workdir(workdir))
    yield workdir
    assert release_bytes(Workdir(workdir)) == before
    assert run(workdir=workdir).succeeds().out.count("skipped") == 7


def archive(folder, section, name="bad.npz", **changes):
    """A tiny image set with some arrays changed, as a setting."""
    classes = CLASSES if section == "data" else SEMANTICS
    arrays = dict(np.load(write_npz(folder / "plain.npz", 60, classes, 1)))
    for array, change in changes.items():
        arrays[array] = change(arrays[array]) if callable(change) else change
    np.savez(folder / name, **{array: value for array, value in arrays.items() if value is not None})
    return f"--config.{section}.path={folder / name}"


def pictures(folder, section):
    """A folder of 20 pictures in three classes, as settings."""
    for i in range(20):
        path = folder / "pictures" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("L", (SIDE + i, SIDE + 2), i)
        picture.paste(255 - i, (SIDE // 2, 0, SIDE, SIDE))
        picture.save(path)
    names = f"--config.{section}.class_names=('a','b','c')"
    return [f"--config.{section}.source=folder", f"--config.{section}.path={folder / 'pictures'}", names]


def missing(folder, section):
    return [f"--config.{section}.path={folder / 'nowhere.npz'}"], [f"{section}.path", "nowhere.npz does not exist"]


def truncated(folder, section):
    setting = archive(folder, section)
    content = (folder / "bad.npz").read_bytes()
    (folder / "bad.npz").write_bytes(content[: len(content) // 2])
    return [setting], [f"{section}.path", "bad.npz is not a readable .npz file"]


def flipped(folder, section):
    setting = archive(folder, section)
    content = bytearray((folder / "bad.npz").read_bytes())
    content[400] ^= 255
    (folder / "bad.npz").write_bytes(content)
    return [setting], [f"{section}.path", "bad.npz", "train_images", "write it with numpy.savez"]


def no_folder(folder, section):
    write_npz(folder / "plain.npz", 60, CLASSES, 1)
    settings = [f"--config.{section}.source=folder", f"--config.{section}.path={folder / 'plain.npz'}"]
    return settings, [f"{section}.path", "plain.npz is not a folder"]


def no_images(folder, section):
    (folder / "empty").mkdir()
    settings = [f"--config.{section}.source=folder", f"--config.{section}.path={folder / 'empty'}"]
    return settings, [f"{section}.path", "empty holds no images"]


def label_above(folder, section):
    settings = [archive(folder, section), f"--config.{section}.class_names=('a','b')"]
    return settings, [
        "bad.npz: the array 'train_labels' holds the label ",
        "outside the 2 classes (0 to 1)",
        f"{section}.class_names",
    ]


def label_below(folder, section):
    setting = archive(folder, section, train_labels=lambda labels: labels - 1)
    return [setting], [f"{section}.path", "the negative label -1", "number classes from 0"]


def labels_too_few(folder, section):
    setting = archive(folder, section, train_labels=lambda labels: labels[1:])
    return [setting], [f"{section}.path", "'train_labels' has the shape [59] beside 60 images"]


def labels_missing(folder, section):
    return [archive(folder, section, train_labels=None)], [f"{section}.path", "no array 'train_labels'"]


def mixed_sizes(folder, section):
    images = np.empty(60, object)
    images[:] = [np.zeros((i + 1, i + 1), np.uint8) for i in range(60)]
    setting = archive(folder, section, train_images=images)
    return [setting], [f"{section}.path", "Python objects in train_images", "mixed sizes?"]


def smaller_than_crop(folder, section):
    settings = [*pictures(folder, section), f"--config.{section}.crop={SIDE + 1}"]
    return settings, ["pictures/a/0.png is 8×10 pixels", "lower crop"]


def one_corrupt(folder, section):
    settings = pictures(folder, section)
    path = folder / "pictures" / "b" / "1.png"
    path.write_bytes(path.read_bytes()[:-20])
    return [*settings, f"--config.{section}.test_fraction=0.05"], [str(path), "is not a readable image"]


BREAKAGES = [
    missing,
    truncated,
    flipped,
    no_folder,
    no_images,
    label_above,
    label_below,
    labels_too_few,
    labels_missing,
    mixed_sizes,
    smaller_than_crop,
    one_corrupt,
]


@pytest.mark.parametrize("section", ["data", "public"])
@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_bad_data_stop_the_run_before_any_mechanism(run, finished, tmp_path, breakage, section):
    settings, culprits = breakage(tmp_path, section)
    run(*settings).refuses(*culprits)
    fresh = Workdir(tmp_path / "run")
    assert not release_bytes(fresh) and not fresh.config_json.exists()
    run(*settings, workdir=finished).refuses(*culprits)


@pytest.mark.parametrize(
    ("settings", "culprits"),
    [
        (["data.n=59"], ["config.data.n=59", "has 60 images"]),
        (["privacy.delta=0.02"], ["config.privacy.delta=0.02 is not below 1/N", "N=60"]),
        (["finetune.batch_size=61"], ["config.finetune.batch_size=61", "N=60"]),
        (["selection.k2=3"], ["config.selection.k2=3", "need 9 public classes", "has 6", "at most 2"]),
        (["selection.ratio=0.1"], ["config.selection.ratio=0.1", "at least 0.5"]),
        (["query.k1=7"], ["config.query.k1=7", "6 public classes"]),
        (["sample.class_weights=(1,2)"], ["config.sample.class_weights has 2 values for the 3 classes"]),
        (["data.max_examples=2"], ["N=2 images"]),
        (["query_net.workdir=/nowhere"], ["config.query_net.workdir=/nowhere", "privimage train-query"]),
    ],
    ids=lambda value: value[0].split("=")[0],
)
def test_settings_that_the_data_do_not_allow(run, finished, tmp_path, settings, culprits):
    settings = [f"--config.{setting}" for setting in settings]
    run(*settings).refuses(*culprits)
    assert not release_bytes(Workdir(tmp_path / "run"))


def test_a_public_set_with_too_few_classes(run, folder, tmp_path):
    swapped = (f"--config.data.path={folder / 'public.npz'}", f"--config.public.path={folder / 'data.npz'}")
    run(*swapped, "--config.data.class_names=('a','b','c','d','e','f')").refuses(
        "the public set has 3 classes for 6 sensitive ones", "config.selection.method=unlabelled"
    )


@pytest.mark.parametrize("section", ["data", "public"])
def test_pictures_of_mixed_sizes_are_cut_and_resized(run, tmp_path, section):
    run(*pictures(tmp_path, section), "--config.query_net.workdir=/nowhere", "--config.finetune.batch_size=9").refuses(
        "/nowhere"
    )


def test_one_held_out_image_cannot_be_evaluated(run, tmp_path):
    one = archive(tmp_path, "data", test_images=lambda images: images[:1], test_labels=lambda labels: labels[:1])
    run(one, "--config.evaluate.enabled=True").refuses("the held-out part of config.data has 1 image", "at least 2")


def test_classes_of_the_held_out_part_must_be_the_same(run, monkeypatch):
    from privimage_jax import data

    original = data.load

    def load(section, part, *arguments, **more):
        names = ("a", "b", "c") if part == "test" else ("x", "b", "c")
        if more["key"] == "data":
            section = section.copy_and_resolve_references()
            section.class_names = names
        return original(section, part, *arguments, **more)

    monkeypatch.setattr(data, "load", load)
    run("--config.evaluate.enabled=True").refuses("held-out part", "a, b, c", "x, b, c")


def test_a_damaged_record_is_named_after_it_has_spent(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "internal")
    before = release_bytes(Workdir(tmp_path / "run"))
    run().refuses("has spent privacy budget in the stage query", "started.json is missing", "choose a new --workdir")
    assert release_bytes(Workdir(tmp_path / "run")) == before


def test_a_workdir_of_another_version(run, finished, tmp_path):
    """That knew fewer settings."""
    shutil.copytree(finished, tmp_path / "run")
    started = tmp_path / "run" / "internal" / "finetune" / "started.json"
    record = json.loads(started.read_text())
    del record["settings"]["generator"]
    started.write_text(json.dumps({**record, "fingerprint": "0"}))
    run().refuses("without config.generator, which is now 'diffusion'; go on with the version that began it")


def test_a_workdir_of_another_config_or_other_data(run, finished, tmp_path):
    run("--config.query.noise_multiplier=6", workdir=finished).refuses(
        str(finished), "with config.query.noise_multiplier=5.0, which is now 6.0", "new --workdir"
    )
    other = archive(tmp_path, "data", train_images=lambda images: images // 2)
    run(other, workdir=finished).refuses(str(finished), "other data", "new --workdir")


def test_the_ledger_command_shows_and_checks_what_was_spent(privimage, finished, tmp_path):
    out = privimage("ledger", finished).succeeds().out
    assert out.count("dp-sgd") == 2 and "the hash chain is intact; spent in all: epsilon = 9.99" in out
    assert "(NOT PRIVATE: fixed seed)" in out
    for path in (finished, finished / "release", finished / "release" / "ledger.jsonl"):
        assert "every epsilon is what dp-accounting (" in privimage("ledger", path, "--verify").succeeds().out
    shutil.copytree(finished / "release", tmp_path / "release")
    path = tmp_path / "release" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"epsilon_target":10.0', '"epsilon_target":99.0'))
    privimage("ledger", tmp_path).refuses(f"line 2 of {path}", "edited or damaged")


def test_a_ledger_cut_short_is_noticed_also_without_the_workdir(privimage, finished, tmp_path):
    lines = (finished / "release" / "ledger.jsonl").read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        (tmp_path / "handed.jsonl").write_text("".join(lines[:kept]))
        result = privimage("ledger", tmp_path / "handed.jsonl", "--verify")
        result.refuses(f"{tmp_path}/handed.jsonl", f"line {kept + 1} of" if kept else "holds no whole line")
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "release" / "ledger.jsonl").write_text("".join(lines[:-1]))
    privimage("ledger", run).refuses("has lost lines that spent budget")


def test_ledgers_of_runs_on_the_same_images_are_added_up(privimage, finished, tmp_path):
    one, other = finished, tmp_path / "ledger.jsonl"
    shutil.copy(finished / "release" / "ledger.jsonl", other)
    out = privimage("ledger", one, other).succeeds().out
    found = re.search(r"together: epsilon = ([\d.]+) at delta = ([\d.e-]+), that of each run", out)
    alone = re.search(r"spent in all: epsilon = ([\d.]+) of 10 at delta = ([\d.e-]+)", out)
    assert found.groups() == alone.groups() and "ledger.jsonl are of one run, copies or earlier states" in out
    assert "only if all these runs read the same images" in out
    privimage("ledger", one, one / "release").refuses(f"{one / 'release'} is given twice")


def test_an_edited_ledger_stops_the_run(run, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "release" / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], *lines[2:]]))
    run().refuses(f"line 2 of {path}", "restore it from a copy, or start a new workdir")


@pytest.mark.parametrize(
    ("place", "culprits"),
    [
        ("file", ["file: a file of this name is in the way"]),
        ("file/run", ["file: a file of this name is in the way"]),
        ("link", ["link: "]),
        ("x" * 300, ["the path is too long"]),
    ],
)
def test_a_workdir_that_is_no_folder(run, tmp_path, place, culprits):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "link")
    run(workdir=tmp_path / place).refuses("cannot write", *culprits)
    assert (tmp_path / "file").read_text() == "kept"


def test_a_workdir_that_cannot_be_written(run):
    run(workdir=pathlib.Path("/proc/run")).refuses("cannot write /proc/run", "choose another workdir")


def test_a_second_process_is_refused(run, finished):
    with Workdir(finished).lock():
        run(workdir=finished).refuses(f"another process is working in {finished}", "another --workdir")


@contextlib.contextmanager
def full_disk(owner, name, size):
    """Within a function, no file can grow beyond `size` bytes: a full disk that needs no privileges."""
    original, old = getattr(owner, name), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def call(*arguments, **more):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
        try:
            return original(*arguments, **more)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)
        signal.signal(signal.SIGXFSZ, handler)


FULL = [
    (train_query, 0, "internal/train-query/metrics"),
    (train_query, 40, "internal/train-query/metrics"),
    (train_query, 1000, "internal/train-query/checkpoints/2"),
    (query, 0, "internal/ledger_head.json"),
    (query, 200, "internal/query/inputs.json"),
    (query, 500, "release/ledger.jsonl"),
    (selection, 0, "internal/select/subset.npz"),
    (pretrain, 1500, "internal/pretrain/checkpoints/2"),
    (finetune, 800, "release/ledger.jsonl"),
    (finetune, 6000, "internal/finetune/checkpoints/2"),
    (sample, 1000, "release/synthetic.npz"),
    (report, 1000, "release/report.html"),
]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_again_and_again(run, finished, tmp_path, monkeypatch):
    """Each time what had been made is intact, and at the end the release is that of an undisturbed run."""
    keep_programs(monkeypatch)
    workdir = Workdir(tmp_path / "run")
    for stage, size, culprit in FULL:
        before = release_bytes(workdir)
        owner = (Mechanism, "spend") if culprit.endswith(".jsonl") else (stage, "run")
        with full_disk(*owner, size):
            run().refuses("cannot write", culprit, "the file would be larger than this disk or account allows")
        assert workdir.done_mark(stage.STAGE.name) is None
        for name, content in before.items():
            assert release_bytes(workdir)[name].startswith(content), (culprit, name)
    run().succeeds()
    assert release_bytes(workdir) == release_bytes(Workdir(finished))


def test_a_full_disk_stops_the_script_without_noise(folder, tmp_path):
    """In a process of its own: threads of orbax and tensorstore have much to say when a write fails."""
    arguments = ("train-query", "--config", folder / "tiny.py", "--workdir", tmp_path / "run", *QUICK)
    script = start(*arguments, cwd=tmp_path)
    while not (tmp_path / "run" / "internal" / "inspection.json").exists() and script.poll() is None:
        time.sleep(0.01)  # the page before it is larger
    resource.prlimit(script.pid, resource.RLIMIT_FSIZE, (5000, 5000))
    finish(script).refuses("cannot write", "internal/train-query/checkpoints", "raise the limit")
