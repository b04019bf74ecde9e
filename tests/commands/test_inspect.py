"""`privimage inspect`, and the same look as the first thing that a run does."""

import dataclasses
import json
import re
import shlex
import stat

import numpy as np
import pytest
from pipelines import release_bytes, write_npz

from privimage_jax.data.inspection import findings
from privimage_jax.data.inspection.found import Found
from privimage_jax.run import inspection
from privimage_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("programs_kept")

RDP = "--config.privacy.accountant=rdp"
QUICK = (RDP, "--config.evaluate.enabled=False")
KEYS = {
    *("source", "labels_from", "n", "classes", "parts", "sizes", "depths", "people", "unit", "n_records", "copies"),
    *("warnings", "refusals"),
}


def write_set(path, classes, **changes):
    """The tiny image set with some arrays changed."""
    arrays = dict(np.load(write_npz(path, 60, classes, seed=classes)))
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    np.savez(path, **arrays)
    return path


@pytest.fixture
def black(tmp_path):
    """A sensitive set of values up to 21, as a setting."""
    changes = {name: lambda images: images // 11 for name in ("train_images", "test_images")}
    return f"--config.data.path={write_set(tmp_path / 'black.npz', 3, **changes)}"


@pytest.fixture
def inspect(privimage, config, tmp_path):
    """`inspect(*arguments) -> (Result, the JSON object)`."""

    def call(*arguments):
        out = tmp_path / "found.json"
        result = privimage("inspect", "--config", config, RDP, "--out", out, *arguments)
        return result, json.loads(out.read_text())

    return call


def test_sound_sets_are_described(inspect, tmp_path):
    result, found = inspect()
    assert result.succeeds().out.splitlines()[-1] == "A run would start."
    assert "sensitive images (config.data)" in result.out and "left: 20, middle: 20, right: 20" in result.out
    assert set(found) == {"data", "public"}
    assert all(set(section) == KEYS for section in found.values())
    assert (found["data"]["unit"], found["data"]["n_records"], found["public"]["n_records"]) == ("image", 60, 0)
    assert "n, public         60 images" in result.out
    assert (found["data"]["source"], found["data"]["n"]) == ("npz", 60)
    assert found["data"]["classes"] == {"left": 20, "middle": 20, "right": 20}
    assert sum(found["data"]["parts"].values()) == 90 and found["data"]["people"] is None
    assert sum(found["public"]["classes"].values()) == found["public"]["n"] == 48
    assert found["public"]["parts"] == {"train": 48, "test": 12}
    told = [each for section in found.values() for each in section["warnings"] + section["refusals"]]
    assert [each["code"] for each in told] == ["delta", "unread"]  # of so few images, and of the public set
    assert told[1]["message"] == "the part test is not read"


def test_nothing_else_is_written_without_a_workdir(inspect, tmp_path):
    inspect()
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert stat.S_IMODE((tmp_path / "found.json").stat().st_mode) == 0o600


def test_a_page_is_written_for_people(privimage, config, tmp_path):
    privimage("inspect", "--config", config, RDP, "--out", tmp_path / "found.html").succeeds()
    page = (tmp_path / "found.html").read_text()
    assert "Not private: keep internal" in page and "A run would start." in page and page.count("<img") > 50


def test_its_help_says_how_a_finding_is_accepted_and_what_is_replaced(privimage):
    out = privimage("inspect", "--help").succeeds().out
    assert "--config.data.accept=" in out and "--config.public.accept=" in out and out.count("replaced") == 2
    assert "This command ends with status 2" in out


def test_what_a_run_would_refuse_ends_with_status_two(inspect, black):
    result, found = inspect(black)
    result.refuses("a run would be refused: 60 of 60 images are nearly black", "config.data.accept=nearly_black to")
    (refusal,) = found["data"]["refusals"]
    assert refusal["code"] == "nearly_black" and "config.data.intensity=0:1, or else LOW:HIGH" in refusal["message"]
    assert f"refused: {refusal['message'][:40]}" in result.out
    result, found = inspect(black, "--config.data.accept=nearly_black")
    result.succeeds()
    assert found["data"]["refusals"] == [] and found["data"]["warnings"][0] == refusal


def test_both_sets_are_told_where_neither_can_be_read(inspect):
    result, found = inspect("--config.data.path=nowhere.npz", "--config.public.path=elsewhere.npz")
    result.refuses("nowhere.npz does not exist", "elsewhere.npz does not exist")
    for section, path in (("data", "nowhere.npz"), ("public", "elsewhere.npz")):
        assert set(found[section]) == KEYS and found[section]["source"] == "npz"
        (refusal,) = found[section]["refusals"]
        assert refusal["code"] == "unreadable" and path in refusal["message"]


def test_settings_that_do_not_fit_are_told_together(inspect):
    result, found = inspect("--config.finetune.batch_size=61", "--config.query.k1=7")
    result.refuses("config.finetune.batch_size=61 is larger", "config.query.k1=7 is larger")
    assert [refusal["code"] for refusal in found["data"]["refusals"]] == ["settings"] * 2


@pytest.mark.parametrize(
    ("setting", "culprit"),
    [
        ("privacy.epsilon=0.0001", "more than config.privacy.epsilon = 0.0001"),
        ("model.name=nope", "config.model.name: unknown model 'nope'"),
        ("query_net.model=nope", "config.query_net.model: unknown model 'nope'"),
        ("model.kwargs.width=0.5", "config.model.name=pipelines:Denoiser fails with"),
        ("query_net.model=pipelines:Failing", "config.query_net.model=pipelines:Failing fails with ZeroDivisionError"),
    ],
)
def test_what_a_run_checks_before_it_spends_is_told(inspect, run, setting, culprit):
    result, found = inspect(f"--config.{setting}")
    result.refuses("a run would be refused: ", culprit)
    assert [refusal["code"] for refusal in found["data"]["refusals"]] == ["settings"]
    run(f"--config.{setting}").refuses(culprit)


def test_a_refusal_is_told_beside_a_warning_of_the_same_words():
    warning = findings.Finding("part_folders", "the same words.")
    seen = inspection.Inspection("", {"public": Found("npz", findings=(warning,))})
    refusal = dataclasses.replace(warning, refuses=True)
    assert seen.with_refusals("data", "npz", [refusal]).found["data"].refusals == [refusal]
    told = seen.with_refusals("public", "npz", [refusal])
    assert told.with_refusals("data", "npz", [refusal]) is told


def test_a_set_that_no_stage_looks_at_is_not_read(inspect):
    off = ("--config.selection.method=none", "--config.pretrain.steps=0", "--config.evaluate.enabled=False")
    result, found = inspect("--config.public.path=nowhere.npz", *off)
    result.succeeds()
    assert found["public"] is None


def test_a_workdir_keeps_the_images_and_what_was_found(privimage, config, tmp_path):
    privimage("inspect", "--config", config, RDP, "--workdir", tmp_path / "run").succeeds()
    run = Workdir(tmp_path / "run")
    for path in inspection.paths(run):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(run.internal.stat().st_mode) == 0o700
    assert len(list(run.cache.glob("npz-*/images.npy"))) == 3 and not list(run.release.iterdir())


@pytest.mark.parametrize(
    ("name", "culprits"),
    [
        ("found.txt", [".json, .html"]),
        ("found", [".json, .html"]),
        ("release/found.json", ["lies in the release", "choose another"]),
        ("mine.json", ["exists and was not written by this command"]),
        ("mine.html", ["exists and was not written by this command"]),
        ("nowhere/found.json", ["cannot be written", "a writable folder"]),
    ],
)
def test_a_place_that_must_not_be_written_is_refused(privimage, config, tmp_path, name, culprits):
    (tmp_path / "release").mkdir()
    (tmp_path / "release" / "ledger.jsonl").touch()
    for mine in ("mine.json", "mine.html"):
        (tmp_path / mine).write_text('{"data": "mine"}')
    privimage("inspect", "--config", config, RDP, "--out", tmp_path / name).refuses(*culprits)
    assert (tmp_path / "mine.json").read_text() == (tmp_path / "mine.html").read_text() == '{"data": "mine"}'


@pytest.mark.parametrize("name", ["run/release/look.html", "linked/look.html", "run/release/deeper/look.json"])
def test_no_release_is_written_before_its_run_has_spent(privimage, config, tmp_path, name):
    """There is no ledger yet that would tell it."""
    privimage("inspect", "--config", config, RDP, "--workdir", tmp_path / "run").succeeds()
    release = tmp_path / "run" / "release"
    (release / "deeper").mkdir()
    (tmp_path / "linked").symlink_to(release)
    privimage("inspect", "--config", config, RDP, "--out", tmp_path / name).refuses("lies in the release", str(release))
    assert [*release.rglob("*")] == [release / "deeper"]


def test_a_link_to_a_file_of_a_release_is_refused(privimage, config, tmp_path):
    (tmp_path / "release").mkdir()
    (tmp_path / "look.html").symlink_to(tmp_path / "release" / "look.html")
    privimage("inspect", "--config", config, RDP, "--out", tmp_path / "look.html").refuses("lies in the release")


@pytest.fixture
def run(privimage, config, tmp_path):
    """`run(*settings) -> Result` up to the query, which spends."""

    def call(*settings, command="query"):
        return privimage(command, "--config", config, "--workdir", tmp_path / "run", *QUICK, *settings)

    return call


def test_a_run_stops_before_it_spends_unless_that_is_accepted(run, black, tmp_path):
    workdir = Workdir(tmp_path / "run")
    run(black).refuses("nearly_black", "config.data.accept=nearly_black to", "internal/inspection.html")
    assert release_bytes(workdir) == {} and not (workdir.internal / "train-query").exists()
    assert "nearly black" in (workdir.internal / "inspection.html").read_text()
    result = run(black, "--config.data.accept=nearly_black").succeeds()
    assert "data            warning  60 of 60 images are nearly black" in result.out


def test_copies_in_the_held_out_part_stop_a_run(privimage, config, tmp_path):
    path = write_set(tmp_path / "copied.npz", 3)
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"test_images": arrays["train_images"][:30]})
    evaluated = ("query", "--config", config, RDP, "--workdir", tmp_path / "run", f"--config.data.path={path}")
    privimage(*evaluated).refuses("30 of 30 held-out images", "(duplicates_across_parts)")
    assert release_bytes(Workdir(tmp_path / "run")) == {}
    listed = json.loads((tmp_path / "run" / "internal" / "inspection.json").read_text())["data"]["copies"]
    assert [(each["image"], each["copy_of"]) for each in listed] == [(str(i), str(i)) for i in range(30)]
    assert "<td>29</td>" in (tmp_path / "run" / "internal" / "inspection.html").read_text()
    # The advice can be followed, and keeps what is accepted already.
    refused = privimage(*evaluated, "--config.data.accept=nearly_black")
    (advice,) = re.findall(r"config\.data\.accept=\S+", refused.err)
    assert shlex.split(advice) == [advice] and advice.endswith("=nearly_black,duplicates_across_parts")
    privimage(*evaluated, f"--{advice}").succeeds()


def test_a_public_set_that_is_one_level_too_high_is_named_as_such(run, tmp_path):
    path = tmp_path / "public.npz"
    np.savez(path, **write_arrays(1))
    run(f"--config.public.path={path}", "--config.public.class_names=PetImages").refuses(
        "the public set has the one class 'PetImages'", "choose a set whose classes tell what its images show"
    )


def test_classes_that_are_wrong_are_told_once(inspect, tmp_path):
    np.savez(tmp_path / "public.npz", **write_arrays(1))
    result, found = inspect(f"--config.public.path={tmp_path / 'public.npz'}", "--config.public.class_names=PetImages")
    result.refuses("the public set has the one class 'PetImages'")
    assert [each["code"] for name in ("data", "public") for each in found[name]["refusals"]] == ["part_folders"]


def write_arrays(classes):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    return {"images": images, "labels": np.arange(30) % classes}


def test_a_run_that_goes_on_does_not_look_again(run, monkeypatch, tmp_path):
    looked, look = [], inspection.look
    monkeypatch.setattr(inspection, "look", lambda *sets: looked.append(sets) or look(*sets))
    labels = {"train_labels": lambda labels: np.where(labels == 2, 1, labels)}
    changed = f"--config.data.path={write_set(tmp_path / 'changed.npz', 3, **labels)}"
    warning = "no sensitive image is of class right"
    for _ in range(2):
        assert warning in run(changed).succeeds().out
        assert len(looked) == 1
    path, _ = inspection.paths(Workdir(tmp_path / "run"))
    path.write_text(path.read_text()[:-20])  # damaged
    assert warning in run(changed).succeeds().out
    assert len(looked) == 2 and json.loads(path.read_text())["data"]["n"] == 60


def test_nothing_of_the_look_is_released(privimage, config, tmp_path):
    """Nor does what is accepted change what is computed."""
    changes = {"train_images": lambda images: np.concatenate([images[:58], images[:2]])}
    path = f"--config.data.path={write_set(tmp_path / 'copies.npz', 3, **changes)}"
    released = []
    for name, accept in (("one", "()"), ("two", "constant")):
        arguments = ("run", "--config", config, "--workdir", tmp_path / name, path, *QUICK)
        assert "exact copies" in privimage(*arguments, f"--config.data.accept={accept}").succeeds().out
        released.append(release_bytes(Workdir(tmp_path / name)))
    assert released[0] == released[1]
    for content in released[1].values():
        assert not any(word in content for word in (b"accept", b"duplicates", b"inspection"))
