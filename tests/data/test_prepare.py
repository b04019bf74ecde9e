import importlib.util

import pytest

from privimage_jax.data.prepare import prepare
from privimage_jax.errors import UserError


def test_without_tensorflow_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[prepare\]"'):
        prepare("mnist", str(tmp_path))


def test_the_tilde_is_the_home_folder(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    class Builder:
        def __init__(self, name, data_dir, **_):
            self.data_dir = data_dir

        def download_and_prepare(self):
            pass

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds, "builder", Builder)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert prepare("mnist", "~/sets") == tmp_path / "sets"


def test_an_unknown_set_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UserError, match="has no set 'no_such_set'"):
        prepare("no_such_set", str(tmp_path))


def test_a_failed_download_is_one_sentence(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    class Builder:
        data_dir = tmp_path

        def download_and_prepare(self):
            raise ConnectionError("no route to host.\nmore lines")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: Builder())
    with pytest.raises(UserError, match=r"preparing mnist in .* failed \(no route to host\)"):
        prepare("mnist", str(tmp_path))
