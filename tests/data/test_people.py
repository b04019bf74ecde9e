"""Whose image it is: every source that can tells it, and where a record is a person nobody is in two parts."""

import numpy as np
import pytest
from prepared import picture, png, write_tfds

from privimage_jax.data import load
from privimage_jax.data.dataset import Dataset
from privimage_jax.data.inspection import people as inspection
from privimage_jax.data.inspection.codes import FINDINGS
from privimage_jax.data.inspection.found import describe
from privimage_jax.data.loading import choose
from privimage_jax.data.sources.base import Settings
from privimage_jax.errors import UserError

NAMES = np.array(["eva", "bo", "eva", "cy", "bo", "eva", "di", "di", "al", "al"])


def archive(folder, names=NAMES, **more):
    images = np.stack([picture(index, channels=1)[..., 0] for index in range(len(names))])
    np.savez(folder / "set.npz", images=images, labels=np.arange(len(names)) % 2, names=names, **more)


def read(folder, part="train", unit="person", cache=None, **more):
    section = {"source": "npz", "path": str(folder / "set.npz"), "person": "array:names"}
    return load(section | {"class_names": ("0", "1")} | more, part, 8, 1, cache, unit=unit)


def test_all_images_of_a_person_are_in_one_part(tmp_path):
    archive(tmp_path)
    for settings in ({"test_fraction": 0.4}, {"validation_fraction": 0.5}, {"seed": 3}):
        parts = [read(tmp_path, part, **settings) for part in ("train", "test")]
        names = [set(part.facts.people) for part in parts]
        assert not names[0] & names[1] and all(part.n_records == len(set(part.people.tolist())) for part in parts)
        for part in parts:
            assert [part.facts.people[owner] for owner in part.people] == [
                name for name in NAMES if name in part.facts.people
            ]
    assert sum(part.n_records for part in (read(tmp_path), read(tmp_path, "test"))) == 5


def test_who_is_where_does_not_depend_on_how_many_images_anybody_has():
    """Else one person's images would move others between the parts, or out of `max_examples`."""
    settings = Settings.from_section({"max_examples": 4, "test_fraction": 0.3})
    parts = []
    for counts in ([1] * 10, [500, *[1] * 9], [3, 1] * 5):
        owners = np.repeat(np.arange(10, dtype=np.int32), counts)
        kept = choose(settings, len(owners), False, "train", owners=owners)
        parts.append(sorted(set(owners[kept].tolist())))
        assert len(kept) == sum(counts[owner] for owner in parts[-1])
    assert parts[0] == parts[1] == parts[2] and len(parts[0]) == 4


def test_records_are_people_and_their_grouping_is_part_of_the_digest(tmp_path):
    archive(tmp_path)
    by_image, by_person = (read(tmp_path, unit=unit, test_fraction=0.0) for unit in ("image", "person"))
    assert (by_image.n_records, by_image.owners) == (10, None) and by_person.n_records == 5
    plain = Dataset(by_image.images, by_image.labels, by_image.class_names, "set")
    assert by_image.digest() == plain.digest() != by_person.digest(), "as before there was a unit"
    archive(tmp_path, NAMES[::-1])
    other = read(tmp_path, test_fraction=0.0)
    np.testing.assert_array_equal(other.images, by_person.images)
    assert other.digest() != by_person.digest()


def test_a_kept_set_of_other_people_is_not_used(tmp_path):
    archive(tmp_path)
    first = read(tmp_path, cache=tmp_path / "cache", test_fraction=0.4)
    assert read(tmp_path, unit="image", cache=tmp_path / "cache", test_fraction=0.4).n == 6
    again = read(tmp_path, cache=tmp_path / "cache", test_fraction=0.4)
    assert again.digest() == first.digest()
    for path in (tmp_path / "cache").rglob("*"):
        assert path.is_dir() or b"eva" not in path.read_bytes()


def test_an_image_without_a_person_is_refused(tmp_path):
    archive(tmp_path, np.where(NAMES == "cy", " ", NAMES))
    with pytest.raises(UserError, match="tells no person of 1 of 10 images, such as 3; give each image"):
        read(tmp_path)
    assert read(tmp_path, unit="image").n == 8
    with pytest.raises(UserError, match="unit=person protects people, and config.data.person is empty; say there"):
        read(tmp_path, person="")
    with pytest.raises(UserError, match="config.data.source=digits does not tell whose an image is; give one of tfds"):
        load({"source": "digits"}, "train", 8, 1, None, unit="person")


def test_one_person_alone_is_told(tmp_path):
    """As where a column of the hospital is taken for that of its patients."""
    archive(tmp_path, np.array(["ward"] * 10))
    with pytest.raises(UserError, match="all 10 images of .* are of 1 person; check config.data.person=array:names"):
        read(tmp_path)


@pytest.mark.parametrize("feature", ["patient", "visitor"])
def test_a_feature_of_a_tfds_set_tells_people(tmp_path, feature):
    def example(index):
        return {
            "image": png(picture(index)),
            "label": index % 3,
            "attributes/Male": index % 2,
            "patient": NAMES[index].encode(),
            "visitor": int(np.unique(NAMES, return_inverse=True)[1][index]),
        }

    write_tfds(tmp_path, {"train": 10}, example, tells_people=True)
    section = {"path": str(tmp_path / "tiny" / "1.0.0"), "test_split": "", "test_fraction": 0.0}
    dataset = load(section | {"person": f"feature:{feature}"}, "train", 8, 3, None, unit="person")
    np.testing.assert_array_equal(dataset.people, np.unique(NAMES, return_inverse=True)[1])
    for person, message in {
        "feature:doctor": "config.data.person=doctor is not a feature of the set; it has .*patient",
        "feature:image": "config.data.person=feature:image is no whole number or text",
        "column:patient": "config.data.person=column:patient is nothing that source=tfds has; give feature:",
    }.items():
        with pytest.raises(UserError, match=message):
            load(section | {"person": person}, "train", 8, 3, None, unit="person")


def test_somebody_in_both_parts_of_a_set_is_found(tmp_path):
    images, labels = np.zeros((6, 8, 8), np.uint8), np.arange(6) % 2
    for part, names in (("train", NAMES[:6]), ("test", ["bo", "zoe", "bo", "zoe", "al", "di"])):
        np.savez(tmp_path / f"{part}.npz", images=images, labels=labels, names=np.array(names))
    train, test = (
        load(
            {"source": "npz", "path": str(tmp_path / f"{part}.npz"), "person": "array:names", "test_fraction": 0.0}
            | {"class_names": ("0", "1")},
            "train",
            8,
            1,
            None,
            unit="person",
        )
        for part in ("train", "test")
    )
    (finding,) = inspection.across_parts(train, test)
    assert finding.refuses and finding.message.startswith("1 of 4 held-out people have images in the training part")
    assert not [*inspection.across_parts(train, read_others(tmp_path))]


def test_space_and_composition_make_no_other_person_and_capitals_are_told(tmp_path):
    archive(tmp_path, np.array(["José", "Jose\u0301 ", " eva", "eva", "Eva", "bo"]))
    found = read(tmp_path, test_fraction=0.0)
    assert found.facts.people == ("Eva", "José", "bo", "eva")
    assert found.people.tolist() == [1, 1, 3, 3, 0, 2]
    (finding,) = inspection.alike(found)
    assert finding.code == "people_alike" and finding.message.startswith("2 of 4 ids of people differ")
    assert not finding.refuses and not [*inspection.alike(read(tmp_path, unit="image", test_fraction=0.0))]


def read_others(folder):
    archive(folder, np.array(["xi", "yu"]))
    return read(folder, test_fraction=0.0)


def test_people_who_are_protected_by_the_image_alone_are_told(tmp_path):
    archive(tmp_path)
    (finding,) = inspection.of_unit(read(tmp_path, unit="image", test_fraction=0.0))
    assert not finding.refuses and "of 5 people, with up to 3 of one" in finding.message
    assert not [*inspection.of_unit(read(tmp_path))]


def test_ids_of_images_and_ids_of_nobody_stop_a_run(tmp_path):
    """Else a column of file names passes as a guarantee for people, and all strangers are one person."""
    archive(tmp_path, np.array([f"scan_{number}" for number in range(10)]))
    dataset = read(tmp_path, test_fraction=0.0)
    (finding,) = inspection.of_unit(dataset)
    assert finding.refuses and finding.code == "one_image_each" and "each of the 10 images" in finding.message
    assert (describe(dataset).unit, describe(dataset).n_records) == ("person", 10)
    archive(tmp_path, np.array(["NaN", "NaN", "NA ", "unknown", *["bo"] * 6]))
    (finding,) = inspection.of_unit(read(tmp_path, test_fraction=0.0))
    assert finding.refuses and finding.code == "unknown_people" and "ids NaN (2 images) look" in finding.message
    accepted = describe(dataset).with_findings([finding], accept=["unknown_people"])
    assert accepted.warnings and not accepted.refusals
    assert {"one_image_each", "unknown_people"} <= {*FINDINGS}


def test_people_with_gaps_in_their_numbers_are_no_records():
    images, labels = np.zeros((2, 4, 4, 1), np.uint8), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match="not numbered from 0 without gaps"):
        Dataset(images, labels, ("a",), "set", np.array([0, 2], np.int32), unit="person")
    with pytest.raises(ValueError, match="not numbered"):
        Dataset(images, labels, ("a",), "set", unit="person")
