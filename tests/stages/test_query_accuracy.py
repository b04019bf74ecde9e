"""How often the query network is right on held-out public images: measured once, bounded, never a reason to fail."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from pipelines import SEMANTICS, run, tiny_config

from privimage_jax import config as configs
from privimage_jax.data.sources.base import Source
from privimage_jax.data.sources.specs import Spec
from privimage_jax.metrics import top_k
from privimage_jax.metrics.features import extract, forward
from privimage_jax.run import inputs as run_inputs
from privimage_jax.run import trouble
from privimage_jax.run.inputs import make_inputs
from privimage_jax.stages import train_query
from privimage_jax.stages.parts import query_accuracy
from privimage_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("programs_kept")

NOT_MEASURED = "the accuracy of the query network is not measured: "


def make_config(folder):
    config = tiny_config(folder)
    config.public.test_split = "test"
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the tiny data, and a run of it up to the query network; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(make_config(folder), folder / "run", "train-query")


def held_out(config):
    with np.load(config.public.path) as arrays:
        return arrays["test_images"], arrays["test_labels"]


def test_it_is_the_accuracy_of_the_network_that_is_kept(trained):
    folder, workdir = trained
    config = make_config(folder)
    images, labels = held_out(config)
    model, variables = train_query.load(make_inputs(configs.check(config), workdir))
    logits = extract(forward(model, variables, "__call__"), images)
    assert query_accuracy.read(workdir) == top_k.measure(logits, labels)
    assert query_accuracy.read(workdir).images == len(labels)


def test_it_is_among_the_metrics(trained):
    _, workdir = trained
    found = query_accuracy.read(workdir)
    with open(workdir.internal / "train-query" / "metrics" / "held_out" / "metrics.csv") as file:
        (row,) = csv.DictReader(file)
    assert (float(row["accuracy"]), float(row["top5"])) == (found.top1, found.top5)
    assert list((workdir.internal / "train-query" / "metrics" / "held_out").glob("events*"))


@pytest.mark.parametrize("known", [True, False], ids=["with the figure", "of an earlier version"])
def test_a_reused_network_has_the_same_accuracy(trained, tmp_path, monkeypatch, known):
    """Taken over where the other run knows it, measured where it does not."""
    folder, workdir = trained
    other = Workdir(shutil.copytree(workdir.root, tmp_path / "other"))
    if known:
        monkeypatch.setattr(run_inputs.DataSets, "public_held_out", property(lambda self: pytest.fail("read again")))
    else:
        (other.internal / "train-query" / "accuracy.json").unlink()
    config = make_config(folder)
    config.query_net.workdir = str(other.root)
    assert query_accuracy.read(run(config, tmp_path / "run", "train-query")) == query_accuracy.read(workdir)


def empty(folder):
    """Arrays of a held-out part that has no image."""
    config = make_config(folder)
    none = {"test_images": np.zeros((0, 8, 8, 1), np.uint8), "test_labels": np.zeros(0, np.int64)}
    with np.load(config.public.path) as arrays:
        np.savez(folder / "changed.npz", **{**arrays, **none})
    config.public.path = str(folder / "changed.npz")
    return config


def unreadable(folder):
    """Pictures in class folders, one of the held-out ones no picture."""
    config, generator = make_config(folder), np.random.default_rng(0)
    for part in ("train", "val"):
        for number in range(SEMANTICS):
            place = folder / "pictures" / part / f"class {number}"
            place.mkdir(parents=True)
            for name in range(4):
                Image.fromarray(generator.integers(0, 256, (8, 8), np.uint8)).save(place / f"{name}.png")
    (folder / "pictures" / "val" / "class 0" / "0.png").write_text("no picture")
    config.public.source, config.public.path, config.public.test_split = "folder", str(folder / "pictures"), "val"
    return config


def open_source(settings, part, image_size):
    """A source from elsewhere whose parts have other classes, which the package's own sources refuse."""
    names = tuple(f"{part[:2]}{number}" for number in range(SEMANTICS))

    def read(indices):
        for index in indices:
            yield np.random.default_rng(index).integers(0, 256, (image_size, image_size), np.uint8), index % SEMANTICS

    return Source("parted", names, n=24, divided=True, read=read, fingerprint=part)


SPEC = Spec(module=__name__, what="two parts")


def other_classes(folder):
    config = make_config(folder)
    config.public.source = f"{__name__}:SPEC"
    return config


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (empty, "leaves no examples for the test part"),
        (unreadable, "0.png is not a readable image"),
        (
            other_classes,
            "has other classes than its training part; give another config.public",
        ),
    ],
)
def test_without_such_images_the_run_says_so_and_goes_on(tmp_path, capsys, make, reason):
    config = make(tmp_path)
    workdir = run(config, tmp_path / "run", "train-query")
    (sentence,) = [one for one in trouble.read(workdir, "train-query") if one.startswith(NOT_MEASURED)]
    assert reason in sentence and sentence.endswith(".")
    assert NOT_MEASURED in " ".join(capsys.readouterr().out.split())
    assert query_accuracy.read(workdir) is None and workdir.done_mark("train-query")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"images": 0, "top1": 0.5}',
        '{"images": 9, "top1": 1.5}',
        '{"images": 9, "top1": 1.0, "top5": "x"}',
    ],
)
def test_a_damaged_figure_is_none(tmp_path, content):
    path = train_query.STAGE.note(Workdir(tmp_path))
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert query_accuracy.read(Workdir(tmp_path)) is None
    path.write_text(json.dumps({"images": 9, "top1": 1.0, "top5": None}))
    assert query_accuracy.read(Workdir(tmp_path)) == top_k.Accuracy(9, 1.0)


@pytest.mark.parametrize(("side", "channels", "most"), [(8, 1, 10_000), (32, 3, 10_000), (256, 3, 1365), (1024, 3, 85)])
def test_it_reads_a_bounded_number_of_images(tmp_path, monkeypatch, side, channels, most):
    config = make_config(tmp_path)
    config.data.image_size, config.data.channels = side, channels
    asked = {}
    monkeypatch.setattr(run_inputs.data, "load", lambda *arguments, **more: asked.update(more, cache=arguments[4]))
    run_inputs.DataSets(config, tmp_path).public_held_out  # noqa: B018
    assert (asked["most"], asked["cache"]) == (most, None)
