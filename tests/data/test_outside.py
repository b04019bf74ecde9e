"""The guide's source from elsewhere; wrong ones are told in a sentence."""

import sys

import numpy as np
import pytest
from guides import extended

from privimage_jax import config as configs
from privimage_jax import data
from privimage_jax.errors import UserError


@pytest.fixture
def config(tmp_path, monkeypatch):
    return extended("An image source", "stripes", tmp_path, monkeypatch)


def load(config, cache=None):
    return data.load(configs.check(config).public, "train", 8, 1, cache, key="public")


def test_it_is_read_like_any_other(config):
    stripes = load(config)
    assert stripes.class_names[2] == "width 3" and stripes.images.shape == (48, 8, 8, 1)
    first = stripes.images[np.flatnonzero(stripes.labels == 2)[0], 0, :, 0]
    assert first.tolist() == [0, 0, 0, 255, 255, 255, 0, 0]


def test_a_changed_reader_serves_no_old_pixels(config, tmp_path, monkeypatch):
    before = load(config, tmp_path / "cache").images[0].copy()
    (tmp_path / "stripes.py").write_text((tmp_path / "stripes.py").read_text().replace("% 2 * 255", "% 2 * 100"))
    monkeypatch.delitem(sys.modules, "stripes")
    assert not np.array_equal(load(config, tmp_path / "cache").images[0], before)


def test_its_settings_are_shown_and_decide_the_result(config):
    from privimage_jax.run.stage import named

    assert named("train-query").settings(config)["public.kwargs.n"] == 60
    assert configs.settings_in_use(config)["public.source"] == "stripes:SPEC"


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"source": "stripes"}, "config.public.source='stripes' is not accepted; give one of tfds, folder"),
        (
            {"source": "hollow:SPEC"},
            r"source=hollow:SPEC: the module of this Spec: nix cannot be loaded \(ModuleNotFound",
        ),
        ({"source": "nowhere:SPEC"}, r"config.public.source: nowhere:SPEC cannot be loaded \(ModuleNotFoundError"),
        ({"source": "stripes:np"}, "config.public.source: stripes:np is of type module, not privimage_jax"),
    ],
)
def test_a_wrong_name_is_told(config, tmp_path, monkeypatch, change, culprit):
    monkeypatch.delitem(sys.modules, "hollow", raising=False)
    (tmp_path / "hollow.py").write_text(
        "from privimage_jax.data.sources.specs import Spec\nSPEC = Spec(module='nix', what='nothing')\n"
    )
    config.public.update(change)
    with pytest.raises(UserError, match=culprit):
        load(config)


def test_a_module_without_the_function_is_told(config, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "hollow", raising=False)
    (tmp_path / "hollow.py").write_text(
        "from privimage_jax.data.sources.specs import Spec\nSPEC = Spec(module='hollow', what='nothing')\n"
    )
    config.public.source = "hollow:SPEC"
    with pytest.raises(UserError, match="config.public.source=hollow:SPEC fails .*open_source"):
        load(config)


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        ("names = numbered", "1 / 0\n    names = numbered", "source=stripes:SPEC fails .ZeroDivisionError"),
        ("            row =", "            1 / 0\n            row =", "source=stripes:SPEC fails .ZeroDivisionError"),
        ("in indices:", "in indices[1:]:", "yields 47 pairs where 48 were asked for"),
        ("in indices:", "in [*indices, 0]:", "yields more pairs than the 48 asked for"),
        ("), label\n", "), label + 0.7\n", "for example 0 the label 0.7, which is no whole number"),
        ("), label\n", "), 'one'\n", "for example 0 the label 'one', which is no whole number"),
        ("), label\n", "), True\n", "for example 0 the label True, which is no whole number"),
        ("), label\n", "), label, 1\n", "for example 0 no pair .image, label., but a tuple"),
        (".astype(np.uint8)", "", r"for example 0 an array int64 \[8, 8\]; give uint8"),
        (".astype(np.uint8)", ".astype(np.uint8)[0]", r"for example 0 an array uint8 \[8\]; give uint8"),
        (".astype(np.uint8)", ".astype(np.uint8)[:0]", r"for example 0 an array uint8 \[0, 8\]; give uint8"),
        (".astype(np.uint8)", ".astype(np.uint8)[..., None][..., [0, 0]]", r"an array uint8 \[8, 8, 2\]; give uint8"),
        ("yield np.tile(row, (image_size, 1)).astype(np.uint8),", "yield None,", "a NoneType in place of an image"),
        ("names, n, divided", "names, -n, divided", "has n=-60; let n be its number of examples"),
        ("names, n, divided", "(), n, divided", "has no class_names; list at least one"),
        ("), label\n", "), label + 9\n", "has label .*, outside the 6 classes"),
        ("fingerprint=[list(widths), n]", "fingerprint={1, 2}", "source=stripes:SPEC fails .TypeError.*JSON"),
        ("return Source(", "Source(", "source=stripes:SPEC opens no privimage_jax.data.sources.base.Source"),
    ],
)
def test_a_source_that_breaks_its_word_is_told(config, tmp_path, monkeypatch, old, new, culprit):
    code = (tmp_path / "stripes.py").read_text()
    assert old in code
    (tmp_path / "stripes.py").write_text(code.replace(old, new))
    monkeypatch.delitem(sys.modules, "stripes", raising=False)
    with pytest.raises(UserError, match=culprit):
        load(config)


@pytest.mark.parametrize(("name", "value"), [("crop", "8"), ("max_examples", 1.5), ("path", None), ("cache", 1)])
def test_settings_given_as_a_dict_are_checked(name, value):
    with pytest.raises(UserError, match=f"config.data.{name}={value!r} is of type .*; give"):
        data.load({"source": "digits", name: value}, "train", 8, 1, None)


def test_a_sensitive_set_whose_source_has_no_list_must_declare_its_classes(config, tmp_path):
    (tmp_path / "listless.py").write_text(
        "from stripes import open_source\nfrom privimage_jax.data.sources.specs import Spec\n"
        "SPEC = Spec(module='listless', what='stripes', declares_classes=False)\n"
    )
    config.data.source, config.data.class_names = "listless:SPEC", ()
    with pytest.raises(UserError, match="config.data.class_names is empty; declare the classes"):
        configs.check(config)
