"""Who tells of trouble, and who may read it."""

import json
import types

import pytest

from privimage_jax.cluster import processes
from privimage_jax.run.trouble import Trouble, read
from privimage_jax.storage.workdir import Workdir


class Waiting(processes.Alone):
    """One of two processes, in which nothing may wait for the other."""

    count = 2

    def __init__(self, index):
        self.index = index

    def barrier(self, place, facts=None):
        raise AssertionError(f"waits at {place!r}")


@pytest.fixture
def inputs(tmp_path):
    """Of a stage that has its folder."""
    (tmp_path / "internal" / "finetune").mkdir(parents=True)
    return types.SimpleNamespace(workdir=Workdir(tmp_path), stage=types.SimpleNamespace(name="finetune"))


@pytest.mark.parametrize("index", [0, 1])
def test_the_first_process_tells_and_none_waits(inputs, index, request, capsys):
    alone = processes.current()
    request.addfinalizer(lambda: processes.join(alone))
    processes.join(Waiting(index))
    Trouble(inputs).tell("loss", "it rises.")
    assert read(inputs.workdir, "finetune") == ["it rises."] * (index == 0)
    assert ("it rises." in capsys.readouterr().out) == (index == 0)


def test_its_owner_alone_may_read_it_and_each_kind_is_kept_as_first_told(inputs):
    for sentence in ("first.", "second."):  # of two starts
        Trouble(inputs).tell("loss", sentence)
    path = inputs.workdir.internal / "finetune" / "trouble.json"
    assert path.stat().st_mode & 0o777 == 0o600 and json.loads(path.read_text()) == {"loss": "first."}
