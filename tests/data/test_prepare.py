import importlib.util

import pytest

from privimage_jax.data.prepare import prepare
from privimage_jax.errors import UserError


def test_without_tensorflow_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "privimage-jax\[prepare\]"'):
        prepare("mnist", str(tmp_path))


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
