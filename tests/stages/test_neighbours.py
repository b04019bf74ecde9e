"""Neighbours of synthetic images are public images that taught the generator; nothing sensitive is looked at."""

import types

import numpy as np
import pytest

from privimage_jax.configs import base
from privimage_jax.data import Dataset
from privimage_jax.run.stage import shows_neighbours
from privimage_jax.stages.parts import neighbours


def grey(*values):
    return np.array(values, np.uint8)[:, None, None, None].repeat(2, 1).repeat(2, 2)


@pytest.fixture
def context(monkeypatch):
    """A context without sensitive images, whose query network sees the pixels."""
    monkeypatch.setattr(neighbours.train_query, "load", lambda context: (None, None))
    monkeypatch.setattr(neighbours, "forward", lambda module, variables: None)
    monkeypatch.setattr(
        neighbours, "extract", lambda features, images: images.reshape(len(images), -1).astype(np.float32)
    )
    monkeypatch.setattr(neighbours.selection, "load_rows", lambda context: (np.array([0, 2, 3]), np.array([0, 1, 1])))
    public = Dataset(grey(10, 20, 30, 40), np.array([0, 1, 1, 0], np.int32), ("lynx", "wolf"), "public")
    return types.SimpleNamespace(public=public, sensitive=types.SimpleNamespace(class_names=("cat", "dog", "eel")))


def test_the_first_image_of_each_class_and_its_nearest_teachers(context):
    cat, eel = neighbours.find(context, grey(22, 11, 0), np.array([2, 0, 0]))
    assert (cat.class_name, eel.class_name) == ("cat", "eel")
    np.testing.assert_array_equal(cat.image, grey(11)[0])
    np.testing.assert_array_equal(cat.neighbours, grey(10, 30, 40))
    assert cat.semantics == ["lynx", "wolf", "lynx"]
    np.testing.assert_array_equal(eel.neighbours, grey(30, 10, 40))  # 20 is nearer but was not picked


def test_all_teachers_are_searched_however_few_are_in_memory_at_a_time(context, monkeypatch):
    rng = np.random.default_rng(0)
    values, rows = rng.integers(0, 100, 60), np.arange(0, 60, 2)  # some values are the same: the first then goes first
    context.public = Dataset(grey(*values), np.zeros(60, np.int32), ("lynx",), "public")
    monkeypatch.setattr(neighbours.selection, "load_rows", lambda context: (rows, np.zeros(30, np.int32)))
    monkeypatch.setattr(neighbours, "CHUNK", 7)
    for value in (0, 50, 99):
        expected = rows[np.argsort(np.abs(values[rows] - value), kind="stable")[: neighbours.NEIGHBOURS]]
        (found,) = neighbours.nearest_rows(context, grey(value))
        np.testing.assert_array_equal(found, expected)
        (cat,) = neighbours.find(context, grey(value), np.array([0]))
        np.testing.assert_array_equal(cat.neighbours, grey(*values[expected]))


def test_neighbours_are_found_far_behind_the_first_ten_thousand(context, monkeypatch):
    n = 25_000
    values = np.zeros(n, np.uint8)
    values[19_999] = 200
    context.public = Dataset(grey(*values), np.zeros(n, np.int32), ("lynx",), "public")
    monkeypatch.setattr(neighbours.selection, "load_rows", lambda context: (np.arange(n), np.zeros(n, np.int32)))
    (found,) = neighbours.nearest_rows(context, grey(201))
    assert found.tolist() == [19_999, 0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("key", "value"),
    [("report.public_neighbours", False), ("pretrain.steps", 0), ("evaluate.enabled", False)],
)
def test_they_are_shown_where_all_they_need_is_there(key, value):
    config = base.get_config()
    config.selection.method = "random"  # so that only the evaluation asks for a query network
    assert shows_neighbours(config)
    section, name = key.split(".")
    config[section][name] = value
    assert not shows_neighbours(config)
