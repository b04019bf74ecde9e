"""Every finding by a set in which it is planted, and none in sound sets."""

import ast
import dataclasses
import pathlib

import numpy as np
import pytest
from hypothesis import given, strategies
from ml_collections import ConfigDict
from PIL import Image, ImageDraw

from privimage_jax.configs import base
from privimage_jax.data import inspection, load
from privimage_jax.data.dataset import Dataset, Facts, Subset
from privimage_jax.data.inspection import copies, findings, plan
from privimage_jax.data.inspection.codes import FINDINGS
from privimage_jax.data.inspection.found import Found, describe
from privimage_jax.data.inspection.statistics import measure

N, SIDE = 40, 12
RANDOM = np.random.default_rng(0).integers(0, 256, (N, SIDE, SIDE, 1), np.uint8)


def dataset(images=RANDOM, labels=None, classes=2, **more):
    labels = np.arange(len(images)) % classes if labels is None else np.asarray(labels)
    names = more.pop("class_names", tuple(f"class {i}" for i in range(classes)))
    return Dataset(images, labels.astype(np.int32), names, "planted", **more)


def codes(found):
    return [(finding.code, finding.refuses) for finding in found]


def of_pixels(images, facts=None, intensity="full", accept=()):
    return [*findings.of_pixels(measure(images), facts or Facts(), "config.data", intensity, accept)]


def blobs():
    """Masks of 0 and 255: a disc on black."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    radii = np.random.default_rng(1).uniform(3, 5, N)
    return np.stack([((rows - 6) ** 2 + (columns - 6) ** 2 < r * r) * np.uint8(255) for r in radii])[..., None]


def sketches():
    """A dark stroke on white paper, shrunk from a large drawing."""
    drawn = []
    for i in range(N):
        paper = Image.new("L", (200, 200), "white")
        ImageDraw.Draw(paper).line([(10, 5 * i), (190, 200 - 5 * i)], fill=0, width=9)
        drawn.append(np.asarray(paper.resize((28, 28), Image.Resampling.BICUBIC)))
    return np.stack(drawn)[..., None]


def scans():
    """A bright body with a soft edge on black, as X-rays and cells under a microscope look."""
    rows, columns = np.mgrid[:28, :28]
    centres = np.random.default_rng(2).uniform(10, 18, (N, 2))
    bodies = [np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 40) for y, x in centres]
    return (np.stack(bodies)[..., None] * 200).astype(np.uint8)


@pytest.mark.parametrize("make", [lambda: RANDOM, sketches, scans], ids=["noise", "sketches", "scans"])
def test_sound_pixels_are_left_alone(make):
    assert of_pixels(make()) == []


def test_masks_are_no_reason_to_stop():
    assert not any(finding.refuses for finding in of_pixels(blobs()))


@pytest.mark.parametrize("source", ["digits", "glyphs"])
def test_the_sets_that_come_with_the_package_are_sound(source):
    section = {"source": source, "per_class": 20, "test_fraction": 0.2}
    parts = [load(section, part, 28, 1, None) for part in ("train", "test")]
    train, test = (measure(part.images) for part in parts)
    found = [
        *findings.of_pixels(train, parts[0].facts, "config.data", "full"),
        *findings.of_classes(parts[0], "config.data", is_public=True),
        *findings.of_semantics(parts[0], is_declared=False),
        *copies.within(train, is_public=True),
        *copies.across_parts(train, test),
    ]
    assert found == []


@pytest.mark.parametrize(
    ("highest", "depth", "remedy"),
    [
        (1, "8-bit grey", "config.data.intensity=0:1, or else LOW:HIGH by what made them."),
        (9, "8-bit grey", "config.data.intensity=0:1, or else LOW:HIGH by what made them."),
        (1, "", "config.data.intensity=0:1, or else LOW:HIGH by what made them."),
        (0, "8-bit grey", "every value is 0"),
        (0, "16-bit grey", "12 bits by what made them, give config.data.intensity=0:4095, or 0:1023 for 10 bits."),
        (16, "16-bit grey", "12 bits by what made them, give config.data.intensity=0:4095, or 0:1023 for 10 bits."),
    ],
)
def test_black_images_are_told_with_usual_ranges(highest, depth, remedy):
    images = (RANDOM > 128).astype(np.uint8) * np.uint8(highest)
    images[: N // 2 - 1] = RANDOM[: N // 2 - 1]  # others may be sound
    (finding,) = of_pixels(images, Facts(depths={depth: N} if depth else {}))
    assert (finding.code, finding.refuses) == ("nearly_black", True)
    assert f"{N // 2 + 1} of {N} images" in finding.message and remedy in finding.message


@given(strategies.integers(1, findings.DARK), strategies.integers(1, findings.DARK))
def test_no_advice_depends_on_the_largest_value(one, other):
    for depth in ("8-bit grey", "16-bit grey"):
        told = [of_pixels((RANDOM > 128) * np.uint8(high), Facts(depths={depth: N})) for high in (one, other)]
        assert told[0] == told[1]


def test_a_range_that_was_given_is_not_advised_again():
    (finding,) = of_pixels(RANDOM // 64, intensity="0:65535")
    assert "config.data.intensity=0:65535 makes them so" in finding.message


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (255 - RANDOM // 64, [("nearly_white", True)]),
        (
            np.broadcast_to(np.arange(60, 60 + N, dtype=np.uint8)[:, None, None, None], RANDOM.shape),
            [("constant", True)],
        ),
        (np.broadcast_to(np.array([255, 0, 0], np.uint8), (N, SIDE, SIDE, 3)), [("constant", False)]),
        (np.where(RANDOM < 90, 0, np.where(RANDOM < 180, RANDOM, 255)).astype(np.uint8), [("saturated", False)]),
    ],
    ids=["white", "one grey", "one colour", "cut off"],
)
def test_other_pixels_that_look_wrong(images, expected):
    assert codes(of_pixels(images)) == expected


@pytest.mark.parametrize(
    ("images", "accept", "expected"),
    [
        (RANDOM * 0, (), ["nearly_black"]),
        (RANDOM * 0, ("nearly_white",), ["nearly_black"]),
        (RANDOM * 0, ("nearly_black",), ["nearly_black", "constant"]),
        (RANDOM // 64, ("nearly_black",), ["nearly_black"]),
        (RANDOM * 0 + 255, ("nearly_white", "constant"), ["nearly_white", "constant"]),
    ],
)
def test_what_is_accepted_hides_nothing(images, accept, expected):
    assert [finding.code for finding in of_pixels(images, accept=accept)] == expected


def test_half_of_the_images_are_not_most():
    images = RANDOM.copy()
    images[: N // 2] = 0
    assert of_pixels(images) == []
    images[: N // 2 + 1] = 0
    assert codes(of_pixels(images)) == [("nearly_black", True)]


def test_statistics_of_a_set_on_disk_are_those_of_the_same_in_memory():
    whole = measure(RANDOM)
    assert whole.n == N and whole.histogram.sum() == RANDOM.size
    assert (whole.low == RANDOM.min(axis=(1, 2, 3))).all() and (whole.high == RANDOM.max(axis=(1, 2, 3))).all()
    some = measure(Subset(RANDOM, np.array([3, 1, 3])))
    assert (some.digests == whole.digests[[3, 1, 3]]).all()


def test_classes_without_images_and_far_rarer_ones_are_named():
    labels = np.r_[np.zeros(20), np.ones(1), np.full(19, 3)]
    found = [*findings.of_classes(dataset(labels=labels, classes=5), "config.data", is_public=False)]
    assert codes(found) == [("empty_class", False), ("rare_class", False)]
    assert "of class class 2, class 4, but" not in found[0].message and "class 2, class 4;" in found[0].message
    assert "class 1 (1)" in found[1].message and "config.class_histogram" in found[1].message


def test_labels_that_begin_with_one_are_told_with_the_remedy():
    found = [*findings.of_classes(dataset(labels=[1, 2] * 20, classes=3), "config.public", is_public=True)]
    assert "give config.public.first_label=1" in found[0].message


def test_of_many_classes_a_message_names_some():
    found = [*findings.of_classes(dataset(labels=np.zeros(N), classes=30), "config.data", is_public=False)]
    assert "class 1, class 2, class 3, class 4, class 5 and 24 more" in found[0].message


@pytest.mark.parametrize(
    "names",
    [
        ("train", "test"),
        ("Training", "Testing"),
        ("train", "valid"),
        ("val",),
        ("HAM10000_images_part_1", "HAM10000_images_part_2"),
        ("images", "test_set"),
        ("00000", "00001"),
        ("fold1", "fold2", "fold3"),
    ],
)
def test_public_classes_that_are_folders_of_parts_are_refused(names):
    public = dataset(classes=len(names), class_names=names)
    assert codes(findings.of_semantics(public, is_declared=False)) == [("part_folders", True)]
    assert codes(findings.of_semantics(public, is_declared=True)) == [("part_folders", True)] * (len(names) == 1)


@pytest.mark.parametrize(
    "names",
    [
        ("bus", "car", "train"),
        ("0", "1"),
        ("00", "01"),
        ("n01440764", "n01443537"),
        ("1998", "1999"),
        ("0000045", "0000099"),
    ],
)
def test_other_public_classes_are_classes(names):
    assert not findings.looks_like_parts(names)


def test_a_public_set_with_one_class_asks_nothing():
    one = dataset(classes=1, class_names=("PetImages",))
    (finding,) = findings.of_semantics(one, is_declared=False)
    assert finding.code == "part_folders" and "one class 'PetImages'" in finding.message
    unlabelled = dataset(classes=1, class_names=("all",))
    assert codes(findings.of_semantics(unlabelled, is_declared=False)) == [("one_class", True)]


@pytest.mark.parametrize("method", ["semantic", "random", "all", "unlabelled"])
def test_one_class_is_too_few_where_the_query_picks_or_labels_teach(method):
    one, unlabelled = (dataset(classes=1, class_names=(name,)) for name in ("PetImages", "all"))
    found = [*plan.of_semantics(one, plan_config(**{"selection.method": method}))]
    assert [finding.code for finding in found] == ["part_folders"] * (method in ("semantic", "all"))
    found = [*plan.of_semantics(unlabelled, plan_config(**{"selection.method": method}))]
    assert [finding.code for finding in found] == ["one_class"] * (method in ("semantic", "all"))


@pytest.mark.parametrize("names", [("PetImages",), ("train", "test")])
@pytest.mark.parametrize(("source", "has_folders"), [("folder", True), ("zip", True), ("npz", False), ("tfds", False)])
def test_class_folders_are_the_remedy_of_sources_that_have_some(names, source, has_folders):
    public = dataset(classes=len(names), class_names=names, facts=Facts(source))
    (finding,) = findings.of_semantics(public, is_declared=False)
    assert ("config.public.path" in finding.message) == has_folders
    assert ("config.selection.method=unlabelled" in finding.message) != has_folders


def test_copies_within_a_part():
    images = RANDOM.copy()
    images[3] = images[4] = images[9]
    (finding,) = copies.within(measure(images), is_public=False)
    assert (finding.code, finding.refuses) == ("duplicates", False) and f"2 of {N}" in finding.message
    assert [*copies.within(measure(RANDOM), is_public=False)] == []


def test_images_of_one_colour_are_no_copies():
    images = np.zeros((N, SIDE, SIDE, 3), np.uint8)
    images[: N // 2] = 200
    found = measure(images)
    assert [*copies.within(found, False), *copies.across_parts(found, found), *copies.of_public(found, found)] == []


@pytest.mark.parametrize(
    ("shared", "held_out", "expected"),
    [
        (0, 20, []),
        (1, 20, [("duplicates_across_parts", False)]),  # one among few may be a chance
        (2, 20, [("duplicates_across_parts", True)]),
        (2, 200, [("duplicates_across_parts", False)]),  # one in a hundred changes no figure
        (3, 200, [("duplicates_across_parts", True)]),
    ],
)
def test_copies_in_the_held_out_part(shared, held_out, expected):
    others = np.random.default_rng(3).integers(0, 256, (held_out, SIDE, SIDE, 1), np.uint8)
    others[:shared] = RANDOM[:shared]
    assert codes(copies.across_parts(measure(RANDOM), measure(others))) == expected


def test_sensitive_images_in_the_public_set():
    public = np.concatenate([RANDOM[5:8], 255 - RANDOM])
    (finding,) = copies.of_public(measure(RANDOM), measure(public))
    assert (finding.code, finding.refuses) == ("duplicates_of_public", False) and f"3 of {N}" in finding.message


def test_copies_are_listed_by_what_the_images_are_called():
    """The same image three times, one of them held out, and one of the public set; one of a single colour is none."""
    images = RANDOM.copy()
    images[9], images[11], images[12] = images[3], 7, 7
    public, held_out = np.concatenate([255 - RANDOM, RANDOM[5:6]]), np.concatenate([images[3:4], 255 - RANDOM[:9]])
    sets = [
        (measure(pixels), Facts(called=lambda number, name=name: f"{name}{number}.png"))
        for pixels, name in ((images, "a"), (held_out, "b"), (public, "c"))
    ]
    assert [(each["code"], each["image"], each["copy_of"]) for each in copies.listed(*sets)] == [
        ("duplicates", "a9.png", "a3.png"),
        ("duplicates_across_parts", "b0.png", "a3.png"),
        ("duplicates_of_public", "a5.png", f"c{N}.png"),
    ]
    assert [*copies.listed(sets[0], None, None)] == [{"code": "duplicates", "image": "a9.png", "copy_of": "a3.png"}]


@given(strategies.lists(strategies.integers(0, 5), min_size=1, max_size=30))
def test_copies_are_counted_whatever_their_order(kinds):
    images = RANDOM[kinds]
    found = [*copies.within(measure(images), is_public=False)]
    surplus = len(kinds) - len(set(kinds))
    assert [finding.message.split()[0] for finding in found] == [str(surplus)] * (surplus > 0)


def plan_config(**changes) -> ConfigDict:
    config = base.get_config()
    small = {"privacy.delta": 1e-6, "finetune.batch_size": 10, "query.noise_multiplier": 1.0}
    config.update_from_flattened_dict({**small, **changes})
    return config


@pytest.mark.parametrize(
    ("changes", "culprits"),
    [
        ({}, []),
        ({"finetune.batch_size": 21}, ["config.finetune.batch_size"]),
        ({"finetune.batch_size": 21, "finetune.enabled": False}, []),
        ({"query.noise_multiplier": 25.0}, ["class 0 (20), class 1 (20)"]),
        ({"query.noise_multiplier": 25.0, "selection.method": "random"}, []),
    ],
)
def test_fewer_sensitive_images_than_the_plan_needs(changes, culprits):
    found = [*plan.of_sensitive(dataset(), plan_config(**changes))]
    assert codes(found) == [("few_images", False)] * len(culprits)
    assert all(culprit in finding.message for culprit, finding in zip(culprits, found, strict=True))


@pytest.mark.parametrize(("delta", "is_told"), [(0.0, True), (0.01, True), (1e-3, False)])
def test_a_delta_that_allows_much_is_told(delta, is_told):
    """40 images: by default N delta is 0.16."""
    found = [*plan.of_sensitive(dataset(), plan_config(**{"privacy.delta": delta}))]
    assert codes(found) == [("delta", False)] * is_told
    assert all("one random record" in finding.message for finding in found)


def test_fewer_public_images_than_a_batch():
    small = {"query_net.batch_size": 8, "pretrain.batch_size": 8}
    assert [*plan.of_public(dataset(), plan_config(**small))] == []
    (finding,) = plan.of_public(dataset(), plan_config(**small | {"pretrain.batch_size": 41}))
    assert finding.code == "few_images" and "config.pretrain.batch_size=41" in finding.message
    assert [*plan.of_public(dataset(), plan_config(**small | {"pretrain.batch_size": 41, "pretrain.steps": 0}))] == []


def test_what_was_passed_over_is_told_once():
    notes = [*findings.of_notes(("the part val is not read.", "a"), ("the part val is not read.",))]
    assert [finding.message for finding in notes] == ["the part val is not read.", "a"]
    assert codes(notes) == [("unread", False)] * 2


def test_what_is_found_is_the_same_after_json():
    facts = Facts("folder", "class folders", {"train": np.int64(30)}, {"28×28": 40}, {"8-bit grey": 40})
    people = np.array([0] * 30 + [*range(1, 11)], np.int32)
    found = describe(dataset(people=people, facts=facts)).with_findings(
        [findings.Finding("constant", "so; mend it.", True), findings.Finding("nearly_black", "so; mend it.", True)],
        accept=("constant",),
    )
    assert codes(found.refusals) == [("nearly_black", True)] and codes(found.warnings) == [("constant", False)]
    assert (found.unit, found.n_records) == ("image", 40)
    assert found.people == {"count": 11, "most_images_of_one": 30}
    assert found.classes == {"class 0": 20, "class 1": 20} and found.parts == {"train": 30}
    found = dataclasses.replace(found, copies=({"code": "duplicates", "image": "1.png", "copy_of": "0.png"},))
    assert Found.from_json(found.to_json()) == found
    assert set(found.to_json()) == set(describe(dataset()).to_json()) == set(Found("npz").to_json())
    with pytest.raises(TypeError):
        Found.from_json({"warnings": [], "refusals": []})


def test_parts_are_known_whether_a_source_has_its_own_or_not(tmp_path):
    digits = load({"source": "digits"}, "train", 8, 1, None)
    assert digits.facts.parts == {"train": 1437, "test": 360}
    held_out = dataset(RANDOM[:7])
    assert describe(dataset(), held_out).parts == {"train": N, "test": 7}


def test_what_can_stop_a_run_can_be_accepted():
    calls = [
        node
        for path in pathlib.Path(inspection.__path__[0]).glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Finding" and isinstance(node.args[0], ast.Constant)
    ]
    refusing = {call.args[0].value for call in calls if len(call.args) > 2 or call.keywords}
    assert refusing == set(FINDINGS)
