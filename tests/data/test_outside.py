"""The guide's source from elsewhere; wrong ones are told in a sentence."""

import sys

import numpy as np
import pytest
from guides import code_of, configured
from pipelines import tiny_config

from privimage_jax import config as configs
from privimage_jax import data
from privimage_jax.errors import UserError


@pytest.fixture
def config(tmp_path, monkeypatch):
    module, settings = code_of("guides/extending.md", "An image source")
    (tmp_path / "stripes.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stripes", raising=False)
    return configured(tiny_config(tmp_path), settings)


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
        ({"source": "nowhere:SPEC"}, r"config.public.source=nowhere:SPEC cannot be loaded \(ModuleNotFoundError"),
        ({"source": "stripes:np"}, "config.public.source=stripes:np is a module; give a privimage_jax"),
    ],
)
def test_a_wrong_name_is_told(config, change, culprit):
    config.public.update(change)
    with pytest.raises(UserError, match=culprit):
        load(config)


def test_a_module_without_the_function_is_told(config, tmp_path):
    (tmp_path / "hollow.py").write_text(
        "from privimage_jax.data.sources.specs import Spec\nSPEC = Spec(module='hollow', what='nothing')\n"
    )
    config.public.source = "hollow:SPEC"
    with pytest.raises(UserError, match="config.public.source=hollow:SPEC cannot be opened .*open_source"):
        load(config)


def test_labels_out_of_range_are_told(config, tmp_path, monkeypatch):
    (tmp_path / "stripes.py").write_text((tmp_path / "stripes.py").read_text().replace(", label\n", ", label + 9\n"))
    monkeypatch.delitem(sys.modules, "stripes", raising=False)
    with pytest.raises(UserError, match="has label .*, outside the 6 classes"):
        load(config)


def test_a_sensitive_set_whose_source_has_no_list_must_declare_its_classes(config, tmp_path):
    (tmp_path / "listless.py").write_text(
        "from stripes import open_source\nfrom privimage_jax.data.sources.specs import Spec\n"
        "SPEC = Spec(module='listless', what='stripes', declares_classes=False)\n"
    )
    config.data.source, config.data.class_names = "listless:SPEC", ()
    with pytest.raises(UserError, match="config.data.class_names is empty; declare the classes"):
        configs.check(config)
