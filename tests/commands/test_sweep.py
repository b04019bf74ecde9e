"""`privimage sweep`: a row for each run, what failed beside what is done, and nothing done twice."""

import contextlib
import csv
import errno
import io
import json
import shutil
import stat

import jax
import numpy as np
import pytest
from commands import Result, in_process
from pipelines import CLASSES, release_bytes, tiny_config, write_npz
from scipy import stats

from privimage_jax import config as configs
from privimage_jax import main, pipeline
from privimage_jax.commands import sweep
from privimage_jax.commands.ledger import describe_joint
from privimage_jax.commands.many_runs import rows
from privimage_jax.commands.many_runs.combinations import name_runs
from privimage_jax.commands.many_runs.plots import plot
from privimage_jax.commands.many_runs.table import CAUTION
from privimage_jax.commands.sweep_subsets import MEASURES, Subsets, correlations, interval
from privimage_jax.configs import base
from privimage_jax.errors import UserError, memory_sentence
from privimage_jax.run import resources
from privimage_jax.run.inputs import make_inputs
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.settings.methods import METHODS
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh

pytestmark = pytest.mark.usefixtures("programs_kept")

SMALL = (
    "--config.privacy.accountant=rdp",
    "--config.model.name=small_models:SmallDenoiser",
    "--config.log.checkpoint_every=100",
    "--acknowledge_looks",
)
SELECTIONS = (  # of six semantics each class of three picks one or two; three are more than there are
    "--zip",
    "--over=selection.method=semantic,semantic,random,random",
    "--over=selection.k2=1,2,2,3",
    *SMALL,
)
FINISHED = ["method=semantic_k2=1", "method=semantic_k2=2", "method=random_k2=2"]
FAILED = "method=random_k2=3"


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """The folder of a sweep with one failed run, and what its command said; tests must not change it."""
    folder = tmp_path_factory.mktemp("swept") / "sweep"
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        in_process(patch)
        status = main.main(["privimage", "sweep", f"--config={config}", f"--workdir={folder}", *SELECTIONS])
    return folder, Result(status, out.getvalue(), err.getvalue())


@pytest.fixture
def copy(made, tmp_path):
    """A private copy of the sweep's folder."""
    return shutil.copytree(made[0], tmp_path / "sweep")


def read_rows(folder) -> list[dict[str, str]]:
    with open(folder / "internal" / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_has_a_row_with_all_its_numbers(made):
    folder, _ = made
    rows = read_rows(folder)
    assert [(row["run"], row["status"]) for row in rows] == [*((name, "done") for name in FINISHED), (FAILED, "failed")]
    assert [row["selection.k2"] for row in rows] == ["1", "2", "2", "3"]
    for row in rows[:3]:
        evaluation = json.loads((folder / row["run"] / "internal" / "evaluation.json").read_text())
        numbers = {name: value for name, value in evaluation.items() if type(value) in (int, float)}
        assert len(numbers) >= 5
        assert {name: float(row[name]) for name in numbers} == numbers
        assert float(row["epsilon"]) == open_ledger(Workdir(folder / row["run"])).entries[-2]["epsilon"]
    assert rows[3]["fid"] == rows[3]["epsilon"] == ""


def test_a_run_that_fails_is_told_and_the_others_go_on(made):
    folder, result = made
    result.refuses(f"1 of 4 runs failed, the first of them {FAILED}", "config.selection.k2=3", "tries them again")
    assert read_rows(folder)[3]["error"] in result.out.replace("\n", " ")


def test_the_runs_share_one_query_network(made):
    folder, _ = made
    made = [resources.read(Workdir(folder / name))["train-query"] for name in FINISHED]
    assert [each.pop("taken", False) for each in made] == [False, True, True]
    assert made[0] == made[1] == made[2], "what it took to make it"


def test_what_compares_the_runs_is_internal(made):
    folder, _ = made
    assert sorted(path.name for path in folder.iterdir()) == sorted(["internal", "public_cache", *FINISHED, FAILED])
    assert stat.S_IMODE((folder / "internal").stat().st_mode) == 0o700
    plots = {path.name: path.read_bytes() for path in (folder / "internal" / "plots").iterdir()}
    assert plots.keys() == {"fid_by_selection.method.png", "fid_by_selection.k2.png"}
    assert all(content.startswith(b"\x89PNG") for content in plots.values())


def test_what_all_runs_cost_together_is_told_and_what_no_epsilon_covers(made):
    folder, result = made
    spending = [open_ledger(Workdir(folder / name)).entries for name in sorted(FINISHED)]
    assert describe_joint(spending) in result.out
    assert "that of each run (NOT PRIVATE: fixed seed);" in result.out
    assert CAUTION in result.out
    assert f"Only each run's release/ may leave {folder}" in result.out


def test_the_table_rounds_epsilon_up(tmp_path, capsys):
    sweep.show([{"run": "k=1", "status": "done", "epsilon": 1.0000001}], [], "fid", Workdir(tmp_path))
    assert " 1.00001 " in capsys.readouterr().out


def test_number_formats_that_differ_are_told(tmp_path, capsys):
    runs = [{"run": name, "status": "done", "computed_in": name} for name in ("float32", "tf32")]
    failed = {"run": "none", "status": "failed", "error": "a sentence."}
    sweep.show([runs[0], failed], [], "fid", Workdir(tmp_path))
    assert "number format" not in capsys.readouterr().out
    sweep.show([*runs, failed], [], "fid", Workdir(tmp_path))
    assert "1 in float32 (such as float32), 1 in tf32 (such as tf32); what" in capsys.readouterr().out


def test_one_void_run_is_told_as_well(made, tmp_path, capsys):
    shutil.copytree(made[0] / FINISHED[0] / "release", tmp_path / "run" / "release")
    sweep.show([], [], "fid", Workdir(tmp_path))
    assert "\nNOT PRIVATE: fixed seed\n" in capsys.readouterr().out


def test_the_same_command_goes_on_and_correlates(privimage, config, copy):
    released = {name: release_bytes(Workdir(copy / name)) for name in FINISHED}
    flags = ("--correlate", "--measure=accuracy_synthetic")
    result = privimage("sweep", "--config", config, "--workdir", copy, *SELECTIONS, *flags)
    result.refuses("1 of 4 runs failed")
    assert result.out.count("done before with the same settings") == 8 + 8 + 7
    assert {name: release_bytes(Workdir(copy / name)) for name in FINISHED} == released
    rows = read_rows(copy)
    for name in MEASURES:
        assert len({float(row[name]) for row in rows[:3]}) > 1  # the last two take all semantics, for other classes
        assert name in result.out
    assert all(0 <= float(row["subset_sds"]) <= 1 for row in rows[:3])
    assert "Pearson, with accuracy_synthetic" in result.out
    assert all(f" {name} " in result.out for name in ("selection.method", "selection.k2", "epsilon", "accuracy_real"))
    assert (copy / "internal" / "plots" / "accuracy_synthetic_by_selection.k2.png").exists()


def test_the_folder_takes_no_other_sweep_and_no_run(privimage, config, copy):
    call = ("--config", config, "--workdir", copy)
    privimage("sweep", *call, *SMALL, "--over=query.k1=1,2").refuses(
        "holds a sweep over selection.k2, selection.method"
    )
    privimage("sweep", *call, *SELECTIONS, "--config.clipping.norm=2e-3").refuses(
        "config.clipping.norm=0.001, which is now 0.002"
    )
    privimage("run", *call).refuses("holds a sweep")
    privimage("audit", *call).refuses("holds a sweep")
    (copy / "internal" / "sweep.json").write_text("[]")
    privimage("sweep", *call, *SELECTIONS).refuses("sweep.json is damaged", "delete it, and the same command takes its")


def test_a_run_s_folder_takes_no_sweep(privimage, config, made):
    run = made[0] / FINISHED[0]
    call = ("sweep", "--config", config, "--workdir", run, "--over=query.k1=1,2", "--acknowledge_looks")
    privimage(*call).refuses(f"{run} holds a run")


@pytest.mark.parametrize(
    ("flags", "culprits"),
    [
        ((), ["--over is missing"]),
        (("--over=query.k3=1,2",), ["config.query.k3 is not a known setting", "config.query.k1"]),
        (("--over=query=1,2",), ["config.query is a section"]),
        (("--over=query.k1",), ["--over=query.k1 lacks a value", "--over=query.k1=1,2,5"]),
        (("--over=query.k1=1,,2",), ["--over=query.k1=1,,2 lacks a value"]),
        (("--over=query.k1=1,two",), ["--config.query.k1=two", "configs/base.py"]),
        (("--over=query.k1=1,0",), ["config.query.k1=0", "at least 1"]),
        (("--over=query.k1=1", "--over=query.k1=2"), ["--over gives query.k1 twice"]),
        (("--over=query.k1=1,1",), ["the combination k1=1 twice"]),
        (("--zip", "--over=query.k1=1,2", "--over=selection.k2=1"), ["query.k1 has 2, selection.k2 has 1"]),
        (("--over=query.k1=2", "--zip", "--one_at_a_time"), ["--zip and --one_at_a_time", "give one"]),
        (("--over=seed=0", "--one_at_a_time"), ["--over gives seed=0, which the config has already"]),
        (("--over=query.k1=1,2", "--correlate", "--acknowledge_looks"), ["--correlate needs at least 3 runs, not 2"]),
        (("--over=query.k1=1,2", "--measure=fid", "--config.evaluate.enabled=False"), ["--measure=fid needs runs"]),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_anything_runs(privimage, config, tmp_path, flags, culprits):
    privimage("sweep", "--config", config, "--workdir", tmp_path / "w", *flags).refuses(*culprits)
    assert not (tmp_path / "w").exists()


def test_an_unknown_measure_is_told_after_the_first_run(privimage, config, copy):
    before = (copy / "internal" / "sweep.csv").read_bytes()
    result = privimage("sweep", "--config", config, "--workdir", copy, *SELECTIONS, "--measure=fdi")
    result.refuses("--measure=fdi is not among the results", "epsilon, fid")
    assert "(1 of 4)" in result.out and "(2 of 4)" not in result.out
    assert (copy / "internal" / "sweep.csv").read_bytes() == before, "the other runs are still there"


def test_values_that_join_later_keep_the_rows_and_the_network(privimage, config, copy):
    shutil.rmtree(copy / FINISHED[2])
    flags = ("--over=selection.method=random", "--over=selection.k2=1", *SMALL)
    result = privimage("sweep", "--config", config, "--workdir", copy, *flags).succeeds()
    joined = "method=random_k2=1"
    assert [row["run"] for row in read_rows(copy)] == [*FINISHED[:2], FAILED, joined], "the deleted one has no row"
    assert json.loads((copy / joined / "config.json").read_text())["public_cache"] == str(copy / "public_cache")
    assert resources.read(Workdir(copy / joined))["train-query"]["taken"]
    spending = [open_ledger(Workdir(copy / name)).entries for name in (*FINISHED[:2], joined)]
    assert describe_joint(spending) in result.out, "runs of the folder that this command leaves alone cost as well"
    assert result.out.count(" done ") >= 3 and " failed " in result.out


def two_runs(field="query.k1", values=(1, 2)):
    config = base.get_config()
    config.evaluate.enabled = False
    experiments = []
    for value in values:
        experiments.append(config.copy_and_resolve_references())
        experiments[-1].update_from_flattened_dict({field: value})
    return name_runs(experiments, [field])


@pytest.mark.parametrize(
    ("field", "values", "shared"),
    [
        ("query.k1", (1, 2), True),
        ("public.path", (".", ".."), False),
        ("public.labels", ("folders", "table:t.csv:a:b"), False),
        ("public.links", ("", "store"), False),
    ],
)
def test_networks_of_other_public_classes_do_not_compare(tmp_path, monkeypatch, capsys, field, values, shared):
    caches = set()

    def run(inputs, check):
        caches.add(inputs.config.public_cache)
        raise UserError("enough.")

    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(UserError, match="2 of 2 runs failed"):
        sweep.run(two_runs(field, values), base.get_config(), Workdir(tmp_path))
    assert caches == {str(tmp_path / "public_cache")}
    assert ("train 2 query networks" in capsys.readouterr().out) != shared


def test_settings_bind_nobody_before_a_run_has_spent(tmp_path, monkeypatch):
    """Nor does what the runs were over: the rows of those that failed go."""
    fail, other = UserError("enough."), base.get_config()
    other.clipping.norm = 2e-3
    monkeypatch.setattr(pipeline, "run", lambda context, check: (_ for _ in ()).throw(fail))
    for field, values, config in (
        ("query.k1", (1, 2), base.get_config()),
        ("query.k1", (1, 2), other),
        ("selection.k2", (3, 4), other),
    ):
        with pytest.raises(UserError, match="2 of 2 runs failed"):
            sweep.run(two_runs(field, values), config, Workdir(tmp_path))
        assert [row[field] for row in read_rows(tmp_path)] == [str(value) for value in values]
    finished = Workdir(tmp_path / "k2=3")
    finished.create()
    finished.mark_done("report", {"fingerprint": "any"})
    with pytest.raises(UserError, match=r"over selection.k2, not query.k1; choose another --workdir"):
        sweep.run(two_runs(), other, Workdir(tmp_path))


def test_a_method_that_all_runs_share_binds(privimage, config, tmp_path, monkeypatch):
    """The settings that it decides are the folder's, where in a study each run has its own."""

    def finish(inputs, check):
        inputs.workdir.create()
        inputs.workdir.config_json.write_text(json.dumps(dict(configs.flatten(inputs.config))))
        inputs.workdir.mark_done("report", {"fingerprint": "any"})

    monkeypatch.setattr(pipeline, "run", finish)
    call = ("sweep", "--config", config, "--workdir", tmp_path / "w", *SMALL, "--over=clipping.norm=1,2")
    privimage(*call, "--method=dpdm")
    privimage(*call, "--method=dp_feta").refuses("holds a sweep with config.warmup.enabled=False, which is now True")


def fail_first(monkeypatch, error):
    """Lets the first of `two_runs` fail so, and the other one pass."""

    def run(context, check):
        if context.config.query.k1 == 1:
            raise error

    monkeypatch.setattr(pipeline, "run", run)


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no 9 bytes.\nmore"), MemoryError()])
def test_a_run_without_enough_memory_is_one_that_failed(tmp_path, monkeypatch, error):
    fail_first(monkeypatch, error)
    with pytest.raises(UserError, match=r"1 of 2 runs failed, the first of them k1=1 \(the memory does not suffice \("):
        sweep.run(two_runs(), base.get_config(), Workdir(tmp_path))
    assert [row["status"] for row in read_rows(tmp_path)] == ["failed", "done"]
    assert read_rows(tmp_path)[0]["error"] == memory_sentence(error), "what any command says"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/file"), "the system refuses: Permission denied"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "the memory does not suffice"),
    ],
)
def test_what_the_system_refuses_one_run_is_told_as_ever(tmp_path, monkeypatch, error, sentence):
    fail_first(monkeypatch, error)
    with pytest.raises(UserError, match=rf"1 of 2 runs failed, the first of them k1=1 \({sentence}"):
        sweep.run(two_runs(), base.get_config(), Workdir(tmp_path))
    assert not (tmp_path / "k1=1" / "internal" / "traceback.txt").exists()


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError("INTERNAL: a\nmistake"), IndexError("a mistake")])
def test_a_run_with_a_bug_is_one_that_failed(tmp_path, monkeypatch, error):
    """Where it lies is told in the run's own folder, to nobody else."""
    fail_first(monkeypatch, error)
    with pytest.raises(UserError, match=r"1 of 2 runs failed, the first of them k1=1 \(.* a mistake \(a bug, here or"):
        sweep.run(two_runs(), base.get_config(), Workdir(tmp_path))
    assert [row["status"] for row in read_rows(tmp_path)] == ["failed", "done"]
    told = tmp_path / "k1=1" / "internal" / "traceback.txt"
    assert "in run" in told.read_text() and stat.S_IMODE(told.stat().st_mode) == 0o600
    monkeypatch.setattr(pipeline, "run", lambda context, check: None)
    sweep.run(two_runs(), base.get_config(), Workdir(tmp_path))
    assert not told.exists()


def test_a_bug_is_a_row_even_where_nothing_can_be_written(tmp_path, monkeypatch):
    def run(context, check):
        monkeypatch.setattr(rows.durable, "atomic_write_bytes", full)
        raise IndexError("a mistake")

    def full(path, *more):
        if path.name == "traceback.txt":
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(path, *more)

    written = rows.durable.atomic_write_bytes
    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(UserError, match=r"2 of 2 runs failed, .* \(IndexError: a mistake \(a bug, here or in a part"):
        sweep.run(two_runs(), base.get_config(), Workdir(tmp_path))


def test_a_row_that_is_no_run_s_is_refused(privimage, config, copy):
    path = copy / "internal" / "sweep.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "rows": [{"run": "k1=1"}]}))
    result = privimage("sweep", "--config", config, "--workdir", copy, *SELECTIONS)
    result.refuses("sweep.json holds a row that is no run's", "delete it")


def test_a_damaged_file_is_made_again_from_the_runs(privimage, config, copy):
    released = {name: release_bytes(Workdir(copy / name)) for name in FINISHED}
    before = [{**row, "seconds": ""} for row in read_rows(copy)]
    (copy / "internal" / "sweep.json").unlink()
    result = privimage("sweep", "--config", config, "--workdir", copy, *SELECTIONS)
    result.refuses("1 of 4 runs failed")
    assert [{**row, "seconds": ""} for row in read_rows(copy)] == before
    assert {name: release_bytes(Workdir(copy / name)) for name in FINISHED} == released, "nothing was spent"


def test_correlations_are_those_of_the_runs_that_have_both():
    generator = np.random.default_rng(0)
    x = generator.normal(size=7)
    rows = [{"subset_sds": 2.0, "subset_fid": a, "subset_mmd": a**3, "fid": -2 * a} for a in x]
    rows += [{"fid": 9.0}, {"subset_fid": 9.0}]
    found = {row["measure"]: row for row in correlations(rows, "fid")}
    assert {row["runs"] for row in found.values()} == {7}
    assert found["subset_sds"]["pearson"] is found["subset_sds"]["spearman"] is None
    assert found["subset_fid"]["pearson"] == pytest.approx(-1)
    assert found["subset_mmd"]["spearman"] == pytest.approx(-1)
    assert found["subset_mmd"]["pearson"] == pytest.approx(-np.corrcoef(x, x**3)[0, 1])
    assert found["subset_sds"]["pearson_95"] is None, "no coefficient, no interval"
    assert found["subset_fid"]["pearson_95"] is found["subset_mmd"]["spearman_95"] is None, "on a line"
    assert found["subset_mmd"]["pearson_95"] == interval(found["subset_mmd"]["pearson"], 7)
    with pytest.raises(UserError, match="--correlate needs 3 finished runs .* and the measure fid, not 2"):
        correlations(rows[5:], "fid")


@pytest.mark.parametrize(("runs", "true"), [(7, 0.6), (7, 0.9), (25, 0.6)])
def test_an_interval_of_a_correlation_holds_the_true_one_as_often_as_it_says(runs, true):
    """Of studies of few and of many runs; an interval of 90% or of 99% is told apart."""
    studies, generator = 3000, np.random.default_rng(1)
    x, y = np.moveaxis(generator.multivariate_normal([0, 0], [[1, true], [true, 1]], size=(studies, runs)), -1, 0)
    r = [np.corrcoef(one, other)[0, 1] for one, other in zip(x, y, strict=True)]
    held = np.mean([low < true < high for low, high in (interval(each, runs) for each in r)])
    assert held == pytest.approx(0.95, abs=0.02)
    ranks = [stats.spearmanr(one, other).statistic for one, other in zip(x[:500], y[:500], strict=True)]
    limits = [interval(each, runs, of_ranks=True) for each in ranks]
    true_rank = 6 / np.pi * np.arcsin(true / 2)
    held = np.mean([each is not None and each[0] < true_rank < each[1] for each in limits])
    assert 0.85 < held < 0.995


@pytest.mark.parametrize(("coefficient", "runs"), [(None, 9), (0.5, 3), (1.0, 9), (-1.0, 9)])
def test_where_runs_tell_no_interval_there_is_none(coefficient, runs):
    assert interval(coefficient, runs) is None


def test_a_look_at_sensitive_images_must_be_acknowledged(privimage, config, tmp_path):
    call = ("sweep", "--config", config, "--workdir", tmp_path / "w", "--over=query.k1=1,2")
    privimage(*call).refuses("a sweep evaluates its runs on the images", "--acknowledge_looks")
    assert not (tmp_path / "w").exists()


def test_a_setting_that_only_some_generators_read_is_told_and_one_for_none_is_refused(
    privimage, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(sweep, "run", lambda runs, *more: None)
    call = ("sweep", "--config", config, "--workdir", tmp_path / "w", "--over=method=dpdm,dpgan", "--acknowledge_looks")
    told = "config.gan.noise makes no difference to runs with config.generator=diffusion."
    assert told in privimage(*call, "--config.gan.noise=16").succeeds().out
    alone = (*call[:-2], "--acknowledge_looks")
    none = "config.gan.noise makes no difference with config.generator=diffusion"
    privimage(*alone, "--over=method=dpdm", "--config.gan.noise=16").refuses(none)
    privimage(*alone, "--over=gan.noise=16,32").refuses(none)
    privimage(*call, "--over=gan.noise=16,32").refuses("would be the same run, as neither reads what")


def test_a_setting_of_what_no_run_does_is_refused(privimage, config, tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "run", lambda runs, *more: None)
    call = ("sweep", "--config", config, "--workdir", tmp_path / "w", "--acknowledge_looks", "--over=warmup.steps=1,2")
    privimage(*call).refuses("config.warmup.steps makes no difference with config.warmup.enabled=False; leave it out")
    privimage(*call, "--config.warmup.enabled=True").succeeds()
    privimage(*call, "--over=warmup.enabled=True,False").refuses("would be the same run, as neither reads what")
    privimage(*call, "--over=warmup.enabled=True,False", "--zip").succeeds()


def test_changes_one_at_a_time_have_a_table_by_name_and_a_plot_each(privimage, config, tmp_path, monkeypatch):
    """Of the setting's own runs and the one that changes nothing."""
    drawn = {}
    monkeypatch.setattr(
        sweep, "plot", lambda rows, fields, field, measure: drawn.update({field: [row["run"] for row in rows]})
    )
    monkeypatch.setattr(sweep, "png", lambda figure: b"")
    flags = ("--one_at_a_time", "--over=sample.steps=2,4", "--over=sample.guidance=1.0", *SMALL)
    call = ("sweep", f"--config={config}", f"--workdir={tmp_path / 'sweep'}", *flags, "--config.finetune.steps=1")
    result = privimage(*call).succeeds()
    assert [(row["run"], row["status"]) for row in read_rows(tmp_path / "sweep")] == [
        (name, "done") for name in ("as_given", "steps=2", "steps=4", "guidance=1.0")
    ]
    assert drawn == {
        "sample.steps": ["as_given", "steps=2", "steps=4"],
        "sample.guidance": ["as_given", "guidance=1.0"],
    }
    privimage(*call, "--over=sample.steps=5").refuses("--over gives sample.steps twice")
    again = [*call[:3], "--one_at_a_time", "--over=sample.steps=5", "--over=sample.guidance=2.0", *SMALL]
    privimage(*again, call[-1], "--config.sample.guidance=0.5").refuses(
        "holds a sweep with config.sample.guidance=0.0, which is now 0.5"
    )
    again.remove("--one_at_a_time")
    privimage(*again, call[-1]).refuses("holds a sweep that was made with --one_at_a_time")
    assert "guidance=1.0" in result.out and "sample.guidance" not in result.out


def test_methods_are_swept_by_name_and_others_may_join(privimage, config, tmp_path):
    """Although what they are differs in settings that no sweep over others may change."""
    call = (f"--config={config}", f"--workdir={tmp_path / 'sweep'}", *SMALL)
    unseen = ("--config.evaluate.enabled=False", "--config.report.public_neighbours=False")
    for name in ("dpdm", "random"):
        privimage("sweep", *call, *unseen, f"--over=method={name}").succeeds()
    rows = read_rows(tmp_path / "sweep")
    assert [(row["run"], row["status"]) for row in rows] == [("method=dpdm", "done"), ("method=random", "done")]
    stored = [json.loads((tmp_path / "sweep" / row["run"] / "config.json").read_text()) for row in rows]
    assert [one["selection.method"] for one in stored] == ["none", "random"]
    privimage("sweep", *call, *unseen, "--over=method=lora", "--config.finetune.batch_size=10").refuses(
        "holds a sweep with config.finetune.batch_size=20, which is now 10"
    )


def test_the_sensitive_images_as_their_own_public_set(tmp_path):
    """Every class picks itself, or is folded to itself; of all images without labels a third fits each class."""
    config = tiny_config(tmp_path)
    config.public.path = config.data.path = str(write_npz(tmp_path / "both.npz", 60, CLASSES, seed=1))
    config.public.test_split = config.data.test_split
    config.query_net.epochs, config.query_net.learning_rate = 12.0, 0.05
    config.selection.assignment = "optimal"
    config.privacy.accountant = "rdp"
    found = {}
    for method in ("semantic", "all", "unlabelled"):
        config.selection.method = method
        context = make_inputs(configs.check(config), Workdir(tmp_path / method), make_mesh(jax.devices()[:1]))
        pipeline.run(context, "select")
        found[method] = Subsets().compare(context)
        config.query_net.workdir = str(tmp_path / method)
    same = {"subset_fid": pytest.approx(0, abs=1e-6), "subset_mmd": 0}
    assert found["semantic"] == {"subset_sds": pytest.approx(1), **same}
    assert found["all"] == found["semantic"]
    assert found["unlabelled"] == {"subset_sds": pytest.approx(3**-0.5, abs=0.01), **same}


def test_a_plot_joins_the_runs_that_differ_in_nothing_else():
    rows = [
        {"k1": k1, "method": method, "fid": k1 * 1.5 + len(method)} for k1 in (5, 1) for method in ("all", "random")
    ]
    axes = plot([*rows, {"k1": 9, "method": "all"}], ["k1", "method"], "k1", "fid").axes[0]
    assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, 4.5], [5, 10.5]], [[1, 7.5], [5, 13.5]]]
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["method = all", "method = random"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("k1", "fid")
    several = [{"k1": 1, "method": name, "fid": 1.0} for name in METHODS]
    lines = plot(several, ["k1", "method"], "k1", "fid").axes[0].lines
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == len(lines) == len(METHODS)
    assert len(lines[0].figure.legends[0].get_texts()) == len(METHODS), "all methods of a study can be told apart"
    named = plot(rows, ["k1", "method"], "method", "fid").axes[0]
    assert [text.get_text() for text in named.get_xticklabels()] == ["all", "random"]
    assert [line.get_xydata().tolist() for line in named.lines] == [[[0, 10.5], [1, 13.5]], [[0, 4.5], [1, 7.5]]]
