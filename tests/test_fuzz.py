"""The fuzz command: every reader holds for a while, and whatever a reader must not do is noticed."""

import fuzz
from planted_readers import PLANTED

QUICK = ["folder", "table", "dataset_json", "zip", "npz", "tfds", "tfrecord", "idx", "cifar", "packed_cifar", "parquet"]
QUICK += ["webdataset", "config", "ledger", "checkpoint", "generator", "semantics", "histogram", "synthetic", "subset"]
QUICK += ["cache", "metrics", "weights", "comparison"]
SEED = 20


def test_every_reader_holds(tmp_path):
    tallies = fuzz.run(QUICK, tmp_path, cases=10 * len(QUICK), first=SEED * fuzz.SEED_CASES)
    assert {name: tally.failures for name, tally in tallies.items() if tally.failures} == {}
    assert {tally.cases for tally in tallies.values()} == {10}
    assert 0 < sum(tally.loaded for tally in tallies.values()) < 10 * len(QUICK)
    assert not [path for name in QUICK for path in (tmp_path / name).iterdir() if path.name != "honest"]


def test_whatever_a_reader_must_not_do_is_noticed(tmp_path):
    order = [name for name in PLANTED if "elsewhere" not in name] + [name for name in PLANTED if "elsewhere" in name]
    tallies = fuzz.run(order, tmp_path, table="planted_readers", cases=len(order), case_seconds=2.0)
    for name, (_, expected) in PLANTED.items():
        found = [problem for _, problem in tallies[name].failures]
        assert found == [] if expected == "refused" else expected in found[0], (name, found)
        assert (tmp_path / name / str(order.index(name))).exists() == bool(found)
