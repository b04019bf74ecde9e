"""What stages took: added up over starts, and memory that was held."""

import json
import stat
import time

import numpy as np
import pytest

from privimage_jax.run import resources
from privimage_jax.storage.workdir import Workdir


@pytest.fixture
def run(tmp_path):
    run = Workdir(tmp_path)
    run.create()
    return run


def test_time_and_memory_of_a_stage(run):
    with resources.measured(run, "pretrain", afresh=True):
        before = np.ones(1 << 26, np.uint8)  # 64 MiB
        time.sleep(3 * resources.PERIOD)
    record = resources.read(run)["pretrain"]
    assert 3 * resources.PERIOD <= record["seconds"] < 60
    assert before.nbytes < record["peak_host_bytes"] < 2**40
    assert stat.S_IMODE((run.internal / "resources.json").stat().st_mode) == 0o600


def test_an_interrupted_stage_takes_what_all_its_starts_took(run):
    resources.note(run, "finetune", {"seconds": 100.0, "peak_host_bytes": 2**50})
    with pytest.raises(KeyboardInterrupt), resources.measured(run, "finetune", afresh=False):
        raise KeyboardInterrupt
    record = resources.read(run)["finetune"]
    assert 100 < record["seconds"] < 160 and record["peak_host_bytes"] == 2**50
    with resources.measured(run, "finetune", afresh=True):
        pass
    record = resources.read(run)["finetune"]
    assert record["seconds"] < 60 and record["peak_host_bytes"] < 2**50


def test_a_run_takes_the_time_of_all_stages_and_the_most_memory(run):
    assert resources.total(run) == {}
    resources.note(run, "query", {"seconds": 1.5, "peak_host_bytes": 7, "peak_device_bytes": 2})
    resources.note(run, "sample", {"seconds": 2.0, "peak_host_bytes": 5})
    assert resources.total(run) == {"seconds": 3.5, "peak_host_bytes": 7, "peak_device_bytes": 2}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"query": 1}', '{"query": {"seconds": "1"}}', '{"query": {"seconds": -1}}']
)
def test_what_is_damaged_is_left_out(run, content):
    (run.internal / "resources.json").write_text(content)
    assert resources.total(run) == {}
    resources.note(run, "sample", {"seconds": 2.0})
    assert json.loads((run.internal / "resources.json").read_text()) == {"sample": {"seconds": 2.0}}
