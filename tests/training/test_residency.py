"""Whether an image set is replicated or sharded: by its size and the devices' memory, both public."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from privimage_jax import config as configs
from privimage_jax.configs import base
from privimage_jax.data import Dataset
from privimage_jax.errors import UserError
from privimage_jax.privacy import records
from privimage_jax.stages import finetune, pretrain, train_query
from privimage_jax.training import memory, residency
from privimage_jax.training.mesh import make_mesh

SET = {"image": jax.ShapeDtypeStruct((1000, 31, 31, 1), jnp.uint8), "label": jax.ShapeDtypeStruct((1000,), jnp.int32)}
WHOLE = 1000 * 1024  # a row of 961 + 4 bytes is filled up to 1,024


@pytest.mark.parametrize(
    ("setting", "devices", "memory", "expected"),
    [
        ("auto", 8, 4 * WHOLE, False),
        ("auto", 8, 4 * WHOLE - 1, True),
        ("auto", 8, WHOLE // 8, True),
        ("auto", 1, WHOLE, False),  # there is nothing to share among
        ("replicated", 8, WHOLE, False),
        ("sharded", 8, 100 * WHOLE, True),
        ("sharded", 1, 100 * WHOLE, False),
    ],
)
def test_what_is_sharded(setting, devices, memory, expected):
    assert residency.is_sharded(SET, devices, setting, memory) == expected


@pytest.mark.parametrize(
    ("setting", "devices", "memory", "remedy"),
    [
        ("auto", 8, WHOLE // 8 - 1, "use more devices"),
        ("sharded", 8, WHOLE // 8 - 1, "use more devices"),
        ("replicated", 8, WHOLE - 1, "give sharded or auto"),
        ("replicated", 1, WHOLE - 1, "use more devices"),
    ],
)
def test_a_set_that_does_not_fit_is_named(setting, devices, memory, remedy):
    with pytest.raises(UserError, match=f"config.data.residency={setting} puts .* {remedy}"):
        residency.is_sharded(SET, devices, setting, memory)


def test_a_set_is_placed_as_the_setting_says(monkeypatch):
    mesh = make_mesh(jax.devices()[:2])
    tree = {"image": np.zeros((9, 2, 2, 1), np.uint8), "label": np.zeros(9, np.int32)}
    monkeypatch.setattr(memory, "device_bytes", lambda: 4 * 9 * records.ROW_MULTIPLE)
    assert not residency.place(tree, mesh).sharded
    assert residency.place(tree, mesh, "sharded").sharded
    monkeypatch.setattr(memory, "device_bytes", lambda: 2 * 9 * records.ROW_MULTIPLE)
    assert residency.place(tree, mesh).sharded


def test_the_setting_is_checked_and_decides_no_result():
    config = base.get_config()
    config.data.residency = "somewhere"
    with pytest.raises(UserError, match="config.data.residency='somewhere' .* auto, replicated, sharded"):
        configs.check(config)
    fingerprints = []
    for choice in ("auto", "sharded"):
        config.data.residency = config.public.residency = choice
        fingerprints.append([stage.STAGE.settings(config) for stage in (finetune, pretrain, train_query)])
    assert fingerprints[0] == fingerprints[1]


def people_of(images_of):
    owners = np.repeat(np.arange(len(images_of), dtype=np.int32), images_of)
    images = np.arange(len(owners), dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
    return Dataset(images, np.zeros(len(owners), np.int32), ("a",), "set", owners, unit="person")


@pytest.mark.parametrize("device", [1 << 40, 1 << 14])
def test_where_people_are_records_auto_and_shapes_do_not_follow_the_number_of_images(device, monkeypatch):
    """It is sensitive. 33 and 35 images of 20 people take the same rows; only `sharded` does not look at their size."""
    mesh, placed = make_mesh(jax.devices()[:2]), []
    monkeypatch.setattr(memory, "device_bytes", lambda: device)
    for own in (14, 16):
        data = residency.place_records(people_of([own, *[1] * 19]), 1, mesh, "auto")
        placed.append((data.images.sharded, data.images.rows.shape, data.first.shape))
        ids = jnp.arange(20)
        batch = jax.jit(lambda data, ids: records.batch(data, ids, mesh))(data.images, data.first[ids])
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], [0, *range(own, own + 19)])
    assert placed[0] == placed[1] == (True, (36, records.ROW_MULTIPLE), (21,))


def test_a_set_of_people_that_does_not_fit_is_refused_before_it_is_placed():
    dataset = people_of([14, *[1] * 19])  # takes 36 rows
    residency.check_fit(dataset, 2, "auto", 18 * records.ROW_MULTIPLE)
    with pytest.raises(UserError, match="config.data.residency=sharded puts .* use more devices"):
        residency.check_fit(dataset, 2, "auto", 18 * records.ROW_MULTIPLE - 1)
