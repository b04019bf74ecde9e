"""`privimage study`: every method at every budget with every seed, in shares, and one table of what came out."""

import contextlib
import csv
import io
import json
import pathlib
import shutil
import stat

import numpy as np
import pytest
from commands import Result, in_process
from hypothesis import given
from hypothesis import strategies as st

from privimage_jax import config as configs
from privimage_jax import main, pipeline
from privimage_jax.commands.ledger import describe_joint
from privimage_jax.commands.many_runs import rows
from privimage_jax.commands.many_runs.folder import ManyRuns
from privimage_jax.commands.many_runs.table import CAUTION
from privimage_jax.commands.study import plan, running
from privimage_jax.commands.study.summary import summarize
from privimage_jax.errors import UserError
from privimage_jax.report.document import is_page
from privimage_jax.run import resources
from privimage_jax.run.mechanism import open_ledger
from privimage_jax.settings import methods
from privimage_jax.storage.workdir import Workdir

pytestmark = pytest.mark.usefixtures("programs_kept")

METHODS = ("random", "dpdm")
FAILED = "privimage-eps0.1-seed0"  # less than the query alone takes
FLAGS = (
    f"--methods={','.join(METHODS)}",
    "--epsilons=10",
    "--seeds=2",
    "--acknowledge_looks",
    "--config.privacy.accountant=rdp",
    "--config.model.name=small_models:SmallDenoiser",
    "--config.log.checkpoint_every=100",
)
NAMES = [f"{method}-eps10-seed{seed}" for seed in (0, 1) for method in METHODS]


@pytest.fixture(scope="module")
def study(config):
    """Calls `privimage study` on the smallest experiment: `study(folder, …, failing=())`."""

    def call(folder, *flags, failing=()):
        out, err, original = io.StringIO(), io.StringIO(), pipeline.run

        def run(inputs, **more):
            if inputs.workdir.root.name in failing:
                raise MemoryError
            original(inputs, **more)

        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            in_process(patch)
            patch.setattr(pipeline, "run", run)
            status = main.main(["privimage", "study", f"--config={config}", f"--workdir={folder}", *FLAGS, *flags])
        return Result(status, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="module")
def made(study, tmp_path_factory):
    """The folder of a study and what its commands said: two shares, of which one run fails, and the whole."""
    folder = tmp_path_factory.mktemp("studied") / "study"
    first = study(folder, "--share=1/2")
    second = study(folder, "--share=2/2", failing=(NAMES[1],))
    shutil.copytree(folder, folder.with_name("shares"))
    return folder, first, second, study(folder)


@pytest.fixture
def copy(made, tmp_path):
    """A private copy of the study's folder."""
    return shutil.copytree(made[0], tmp_path / "study")


def read_csv(folder, name):
    with open(folder / "internal" / name, newline="") as file:
        return list(csv.DictReader(file))


def test_shares_part_the_runs_and_the_command_joins_them(made):
    folder, first, second, joined = made
    assert "2 of the 2 runs of this share are done; the same command without a share joins all" in first.succeeds().out
    second.refuses(f"1 of 2 runs failed, the first of them {NAMES[1]} (the memory does not suffice", "tries them again")
    assert joined.succeeds().out.count("is finished with the same settings") == 3
    shares = folder.with_name("shares")
    assert not (shares / "internal" / "study.html").exists(), "a share leaves the table to the whole"
    rows = {row["run"]: row for row in read_csv(shares, "study.csv")}
    assert [*rows] == NAMES
    assert [row["status"] for row in rows.values()] == ["done", "failed", "done", "done"]
    assert "memory does not suffice" in rows[NAMES[1]]["error"]


def test_a_share_without_a_run_says_so(study, tmp_path):
    said = study(tmp_path / "study", "--methods=dpdm", "--seeds=1", "--share=2/2").succeeds().out
    assert said.strip() == "no run falls to this share, as there are more shares (2) than runs (1)."


def test_every_run_has_a_row_with_all_that_is_known_of_it(made):
    folder = made[0]
    rows = read_csv(folder, "study.csv")
    assert [row["run"] for row in rows] == NAMES
    for row in rows:
        run = Workdir(folder / row["run"])
        settings = json.loads(run.config_json.read_text())
        assert [row[key] for key in ("method", "seed", "status")] == [settings["method"], str(settings["seed"]), "done"]
        evaluation = json.loads((run.internal / "evaluation.json").read_text())
        assert float(row["fid"]) == evaluation["fid"]
        assert float(row["epsilon"]) == open_ledger(run).entries[-2]["epsilon"]
        assert float(row["seconds"]) == resources.total(run)["seconds"] > 0
        assert float(row["peak_host_bytes"]) > 2**20
        assert int(row["parameters"]) == (64 + 3 + 1) * 64 + 64
    assert settings["public_cache"] == str(folder / "public_cache")
    assert settings["private_cache"] == str(folder / "internal" / "cache")
    kept = {path.name.split("-")[0] for path in (folder / "internal" / "cache").iterdir()}
    assert kept == {"npz", "features", "classifier", "resources"}, "what all runs find of real images, and what it took"


def test_methods_are_compared_by_means_and_spreads_over_seeds(made):
    folder = made[0]
    rows, table = read_csv(folder, "study.csv"), read_csv(folder, "study_table.csv")
    assert [(row["method"], row["runs"], row["failed"], row["seeds"]) for row in table] == [
        (method, "2", "0", "0 1") for method in METHODS
    ]
    for row in table:
        a, b = (float(each["fid"]) for each in rows if each["method"] == row["method"])
        assert float(row["fid"]) == pytest.approx((a + b) / 2)
        assert float(row["fid_sd"]) == pytest.approx(abs(a - b) / 2**0.5)
        assert float(row["epsilon"]) == max(float(r["epsilon"]) for r in rows if r["method"] == row["method"])
    assert [path.name for path in sorted((folder / "internal" / "plots").iterdir())] == [
        "accuracy_synthetic_by_epsilon.png",
        "fid_by_epsilon.png",
    ]


def test_runs_of_one_seed_train_one_query_network(made):
    found = [resources.read(Workdir(made[0] / name))["train-query"].get("taken", False) for name in NAMES]
    assert sorted(found[:2]) == sorted(found[2:]) == [False, True]


def test_what_publishing_all_would_cost_is_told_and_what_no_epsilon_covers(made):
    folder, *_, joined = made
    cost = describe_joint([open_ledger(Workdir(folder / name)).entries for name in sorted(NAMES)])
    assert f"What publishing every release/ of this folder would cost, {cost}" in joined.out
    assert CAUTION in joined.out and f"Only each run's release/ may leave {folder}" in joined.out


def test_the_page_is_internal_and_shows_every_method_and_run(made):
    path = made[0] / "internal" / "study.html"
    page = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert is_page("study", path.read_bytes()) and "Not private: keep internal" in page
    for words in (*NAMES, *(f"{method}, ε = 10" for method in METHODS), "What publishing every release/", "Parameters"):
        assert words in page
    assert page.count("<img") > 0


def test_a_run_that_another_process_holds_is_passed_by(study, copy):
    shutil.rmtree(copy / NAMES[1] / "internal" / "done")
    with Workdir(copy / NAMES[1]).lock():
        said = study(copy).succeeds().out
    assert f"passed by, as other processes hold them: {NAMES[1]}" in said
    assert [row["status"] for row in read_csv(copy, "study.csv")] == ["done"] * 4, "as it was"


def test_a_deleted_run_is_made_again_from_the_cache(study, copy):
    shutil.rmtree(copy / NAMES[0])
    said = study(copy).succeeds().out
    assert said.count("is finished with the same settings") == 3
    assert {s for s, r in resources.read(Workdir(copy / NAMES[0])).items() if r.get("taken")} == {
        "train-query",
        "pretrain",
    }


def computed_elsewhere(folder, name, precision="bfloat16"):
    """Lets a finished run say that it was made on an accelerator, where "auto" means another format than here."""
    path = folder / name / "internal" / "done" / "report.json"
    mark = json.loads(path.read_text())
    assert mark["settings"]["precision"] == "float32"
    path.write_text(json.dumps({**mark, "settings": {**mark["settings"], "precision": precision}}))


def test_runs_that_an_accelerator_made_are_joined_on_a_cpu(study, copy, made):
    assert "number format" not in made[3].out
    for name in NAMES:
        computed_elsewhere(copy, name)
    said = study(copy).succeeds().out
    assert said.count("is finished with the same settings") == 4 and "number format" not in said
    assert {row["computed_in"] for row in read_csv(copy, "study.csv")} == {"bfloat16"}


def test_runs_of_several_number_formats_are_told(study, copy):
    computed_elsewhere(copy, NAMES[1])
    said = " ".join(study(copy).succeeds().out.split())
    assert said.count("is finished with the same settings") == 4
    assert f"3 in float32 (such as {NAMES[0]}), 1 in bfloat16 (such as {NAMES[1]})" in said
    assert [row["computed_in"] for row in read_csv(copy, "study.csv")] == ["float32", "bfloat16", "float32", "float32"]
    assert "Computed in" in (copy / "internal" / "study.html").read_text()


def test_further_budgets_join_and_a_failure_is_a_row(study, copy):
    result = study(copy, "--methods=privimage", "--epsilons=0.1", "--seeds=1")
    result.refuses("1 of 1 runs failed", FAILED)
    assert [row["run"] for row in read_csv(copy, "study.csv")] == [*NAMES, FAILED]
    assert [row["failed"] for row in read_csv(copy, "study_table.csv")] == ["0", "0", "1"]
    assert f"{FAILED}</th>" in (copy / "internal" / "study.html").read_text()


def test_a_table_is_of_equal_settings(study, copy):
    """Also of those that some method decides itself, and of those that decide what a run is measured by."""
    study(copy, "--config.pretrain.steps=7").refuses("holds a study with config.pretrain.steps=6, which is now 7")
    other = "--config.evaluate.max_images=20"
    told = f"{NAMES[1]} was made with config.evaluate.max_images=10000, which is now 20"
    study(copy, "--methods=random", other).refuses(told, "measures them anew")
    before = {row["run"]: float(row["fid"]) for row in read_csv(copy, "study.csv")}
    study(copy, other, failing=(NAMES[2],)).refuses("1 of 4 runs failed", NAMES[2])
    now = {row["run"]: row for row in read_csv(copy, "study.csv")}
    assert now.pop(NAMES[2])["status"] == "failed", "its old number does not compare with the others'"
    assert all(float(row["fid"]) != before[name] for name, row in now.items())
    assert [row["runs"] for row in read_csv(copy, "study_table.csv")] == ["1", "2"]
    study(copy, other).succeeds()


def test_what_is_not_measured_anew_yet_is_in_no_table(study, copy):
    """As another process holds it."""
    with Workdir(copy / NAMES[0]).lock():
        study(copy, "--config.evaluate.max_images=20").succeeds()
    assert [row["run"] for row in read_csv(copy, "study.csv")] == NAMES[1:]
    assert [row["runs"] for row in read_csv(copy, "study_table.csv")] == ["2", "1"]


def test_a_setting_that_an_earlier_version_did_not_have_is_no_difference(study, copy):
    path = Workdir(copy).study_json
    stored = json.loads(path.read_text())
    for settings in stored["measured"].values():
        del settings["evaluate.max_images"]
    path.write_text(json.dumps(stored))
    study(copy, "--methods=random").succeeds()


def test_a_run_that_is_done_stays_so_where_a_later_attempt_fails(study, copy):
    before = (copy / "internal" / "study.csv").read_bytes()
    shutil.rmtree(copy / NAMES[0] / "internal" / "done")
    study(copy, failing=(NAMES[0],)).refuses("1 of 4 runs failed", NAMES[0])
    assert (copy / "internal" / "study.csv").read_bytes() == before


def test_a_setting_that_only_some_methods_read_is_told(privimage, config, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "run", lambda *arguments: None)
    call = ("study", "--config", config, "--workdir", tmp_path / "w", "--acknowledge_looks", "--config.gan.noise=16")
    told = "config.gan.noise makes no difference to runs with config.generator=diffusion."
    assert told in privimage(*call, "--methods=dpgan,dpdm").succeeds().out
    privimage(*call, "--methods=dpdm").refuses("config.gan.noise makes no difference with config.generator=diffusion")


@pytest.mark.parametrize(
    ("methods", "flags", "culprit"),
    [
        (
            "privimage",
            ["--config.warmup.steps=99"],
            "config.warmup.steps makes no difference with config.warmup.enabled=F",
        ),
        (
            "privimage,dpgan",
            ["--config.class_histogram.noise_multiplier=9"],
            "with config.class_histogram.enabled=False",
        ),
        ("privimage", ["--config.sampler_choice.n=9"], "with config.sampler_choice.enabled=False; leave it out"),
        (
            "dpdm,dpgan",
            ["--config.pretrain.ema=0.9"],
            "config.pretrain.ema makes no difference with config.pretrain.steps=0",
        ),
        ("dpdm,random", ["--config.query.noise_multiplier=9"], "makes no difference with config.selection.method=none"),
        (
            "dpdm",
            ["--config.evaluate.enabled=False", "--config.query_net.epochs=9"],
            "and config.evaluate.enabled=False",
        ),
        (
            "dpdm",
            ["--config.pretrain.steps=7"],
            "config.pretrain.steps=7 does not count for dpdm, which decides that itself",
        ),
    ],
)
def test_a_setting_of_what_no_run_does_is_refused(privimage, config, tmp_path, methods, flags, culprit):
    call = ("study", "--config", config, "--workdir", tmp_path / "w", "--acknowledge_looks", f"--methods={methods}")
    privimage(*call, *flags).refuses(culprit)
    assert not (tmp_path / "w").exists()


def test_a_setting_of_what_some_runs_do_is_taken(privimage, config, tmp_path, monkeypatch):
    flags = ("--methods=dp_feta,dpdm,random", "--config.warmup.steps=9", "--config.pretrain.ema=0.9")
    _, runs = planned(privimage, monkeypatch, "--config", config, "--workdir", tmp_path / "w", *flags)
    assert {(one.warmup.steps, one.pretrain.ema) for one in runs.values()} == {(9, 0.9)}
    alone = ("--methods=dp_feta", "--config.pretrain.ema=0.9")  # noisy means are learnt as pretrain says
    planned(privimage, monkeypatch, "--config", config, "--workdir", tmp_path / "w", *alone)


def test_a_method_overrules_what_defines_it_and_no_k_that_is_given(privimage, config, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(running, "run", lambda runs, *more: made.extend(runs))
    call = ("study", "--config", config, "--workdir", tmp_path / "w", "--acknowledge_looks", "--methods=dpgan,dpdm")
    said = privimage(*call, "--config.generator=gan", "--config.finetune.noise_multiplicity=3").succeeds().out
    assert [one.config.generator for one in made] == ["gan", "diffusion"]
    assert [one.config.finetune.noise_multiplicity for one in made] == [3, 3]
    assert [line for line in said.splitlines() if "does not count" in line] == [
        "config.generator=gan does not count for dpdm, which decides that itself."
    ]


def test_what_a_method_has_nothing_like_is_told_with_its_name(privimage, config, tmp_path, monkeypatch):
    """A config that belongs to none of the methods need not fit itself: no run has it."""
    monkeypatch.setattr(running, "run", lambda *arguments: None)
    call = ("study", "--config", config, "--workdir", tmp_path / "w", "--acknowledge_looks", "--methods=lora,dpgan")
    privimage(*call, "--config.sampler_choice.enabled=True").refuses(
        "config.sampler_choice.enabled=True is of config.generator=diffusion, and gan",
        "which config.method=dpgan means, has nothing like it; give False.",
    )
    privimage(*call, "--config.generator=gan", "--config.finetune.lora_rank=4").succeeds()
    (tmp_path / "bare.py").write_text("from ml_collections import ConfigDict\nget_config = ConfigDict")
    privimage(*call, "--config", tmp_path / "bare.py").refuses("is missing")


def test_the_folder_takes_no_other_study_and_no_run(study, privimage, config, copy, made):
    study(copy, "--config.clipping.norm=2e-3").refuses(
        "holds a study with config.clipping.norm=0.001, which is now 0.002"
    )
    call = ("--config", config, "--workdir", copy)
    privimage("run", *call).refuses("holds a study")
    swept = ("--over=query.k1=1,2", "--acknowledge_looks")
    privimage("sweep", *call, *swept).refuses("holds a study; give the sweep a --workdir of its own")
    study(made[0] / NAMES[0]).refuses("holds a run; give the study a --workdir of its own")


def test_a_study_is_of_one_image_set(study, config, copy, tmp_path):
    again = Workdir(copy)
    other = json.loads(again.study_json.read_text())["settings"]["data.path"]
    moved = shutil.copyfile(other, tmp_path / "moved.npz")
    study(copy, f"--config.data.path={moved}").refuses(
        f"holds a study with config.data.path={other!r}, which is now {str(moved)!r}"
    )
    study(copy, "--config.public.first_label=1").refuses("holds a study with config.public.first_label")


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_study_whose_file_is_lost_is_not_refused_against_itself(privimage, config, tmp_path, monkeypatch, name):
    """Whatever its method decides; and with another value of that it is, whether the file is lost or not."""
    folder, found = Workdir(tmp_path / "w"), []
    monkeypatch.setattr(running, "run", lambda runs, base, *_: found.append((runs, base)))

    def commanded(*flags) -> ManyRuns:
        call = ("study", "--config", config, "--workdir", folder.root, "--acknowledge_looks", f"--methods={name}")
        privimage(*call, *flags).succeeds()
        return ManyRuns(folder, "study", plan.FIELDS, found[-1][1], found[-1][0])

    many = commanded()
    many.take()
    with many.held():
        many.save([])
    own = Workdir(folder.root / found[0][0][0].name)
    own.create()
    own.config_json.write_text(json.dumps(dict(configs.flatten(found[0][0][0].config))))
    own.mark_done("report", {"fingerprint": "any"})
    for _ in range(2):
        commanded().take()
        with pytest.raises(UserError, match=r"with config\.finetune\.noise_multiplicity=\d, which is now 7; restore"):
            commanded("--config.finetune.noise_multiplicity=7").take()
        folder.study_json.unlink(missing_ok=True)


def test_what_an_earlier_version_does_not_note_had_its_default(study, copy):
    path = Workdir(copy).study_json
    noted = json.loads(path.read_text())
    del noted["settings"]["finetune.lora_scale"]
    path.write_text(json.dumps(noted))
    study(copy, "--methods=lora", "--config.finetune.lora_scale=3").refuses(
        "with config.finetune.lora_scale=1.0, which is now 3.0"
    )


@pytest.mark.parametrize(
    ("section", "arrays", "words"),
    [
        ("data", "train_images", "the training images of config.data"),
        ("data", "test_images", "the held-out images of config.data"),
        ("public", "train_images", "the images of config.public"),
    ],
)
@pytest.mark.parametrize("lost", [False, True])
def test_images_that_are_replaced_in_place_do_not_join(study, copy, tmp_path, section, arrays, words, lost):
    """One pixel of one image differs, under the same path and settings; nothing is spent on it.

    Nor where the file of the study is lost, and the finished runs tell of themselves.
    """
    path = pathlib.Path(json.loads(Workdir(copy).study_json.read_text())["settings"][f"{section}.path"])
    shutil.rmtree(copy / NAMES[0])
    if lost:
        Workdir(copy).study_json.unlink()
    with np.load(path) as found:
        changed = dict(found)
    changed[arrays][0, 0, 0] ^= 1
    path.rename(tmp_path / "original.npz")
    try:
        np.savez(path, **changed)
        result = study(copy)
    finally:
        (tmp_path / "original.npz").replace(path)
    result.refuses("1 of 4 runs failed", f"{words} are not those of {NAMES[1]}", "choose another --workdir")
    assert not Workdir(copy / NAMES[0]).ledger.exists()
    assert [row["status"] for row in read_csv(copy, "study.csv")] == ["failed", "done", "done", "done"]


def test_a_study_has_its_mark_before_its_first_run_ends(study, privimage, config, tmp_path, monkeypatch):
    folder = tmp_path / "study"

    def killed(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "finish", killed)
    with contextlib.suppress(KeyboardInterrupt):
        study(folder)
    assert json.loads(Workdir(folder).study_json.read_text())["rows"] == []
    privimage("run", "--config", config, "--workdir", folder).refuses("holds a study")


def stored(folder):
    return json.loads(Workdir(folder).study_json.read_text())


def test_settings_bind_nobody_before_a_run_has_spent(study, copy):
    """Nor once the runs that did are deleted; what failed before may be mended."""
    other = "--config.clipping.norm=2e-3"
    told = (
        "config.clipping.norm=0.001, which is now 0.002; restore that, choose another --workdir, or delete the folders"
    )
    study(copy, other).refuses(told, f"({', '.join(sorted(NAMES)[:3])} and 1 more), whose budget stays spent")
    for name in NAMES:
        shutil.rmtree(copy / name)
    assert stored(copy)["settings"]["clipping.norm"] == 1e-3
    study(copy, other, failing=NAMES).refuses("4 of 4 runs failed")
    assert stored(copy)["settings"]["clipping.norm"] == 2e-3
    study(copy, failing=NAMES).refuses("4 of 4 runs failed")
    assert [row["status"] for row in read_csv(copy, "study.csv")] == ["failed"] * 4


@pytest.mark.parametrize("left", ["ledger", "damaged ledger", "mark", "row", "lock"])
def test_one_run_that_has_spent_or_is_being_made_binds(study, copy, left):
    for name in NAMES[1:]:
        shutil.rmtree(copy / name)
    run, held = Workdir(copy / NAMES[0]), contextlib.nullcontext()
    if left != "row":
        Workdir(copy).study_json.write_text(json.dumps({**stored(copy), "rows": []}))
    if left != "mark":
        shutil.rmtree(run.internal / "done")
    if left not in ("ledger", "damaged ledger"):
        shutil.rmtree(run.release)
        shutil.rmtree(run.internal / "query", ignore_errors=True)
        (run.internal / "ledger_head.json").unlink()
        for path in run.internal.glob("*/inputs.json"):
            path.unlink()
    if left == "damaged ledger":
        run.ledger.write_text("{}")
    if left == "lock":
        held = run.lock()
    said = f"while {NAMES[0]} is being made; wait" if left == "lock" else f"({NAMES[0]}), whose budget stays spent"
    with held:
        study(copy, "--config.clipping.norm=2e-3", failing=NAMES).refuses(
            "holds a study with config.clipping.norm=0.001, which is now 0.002", said
        )


def test_settings_bind_those_runs_that_they_make_a_difference_to(study, copy):
    """A run that failed may be mended beside others, and what no run reads is not in the way of later ones."""
    gans = [name.replace("random", "dpgan") for name in NAMES if "random" in name]
    assert not {"gan.noise", "warmup.steps", "selection.method"} & stored(copy)["settings"].keys()
    for noise in (16, 32):
        result = study(copy, "--methods=dpgan,dpdm", f"--config.gan.noise={noise}", failing=gans)
        result.refuses("2 of 4 runs failed")
        assert stored(copy)["settings"]["gan.noise"] == noise
    study(copy).succeeds()
    assert stored(copy)["settings"]["gan.noise"] == 32, "of other runs, and still known"
    study(copy, "--config.model.kwargs.width=8").refuses(
        "holds a study with config.model.kwargs.width=None, which is now"
    )


def test_a_microbatch_may_be_lowered_beside_finished_runs(study, copy):
    """Which whoever runs out of memory is told to do."""
    said = study(copy, "--config.clipping.microbatch=4").succeeds().out
    assert said.count("is finished with the same settings") == 4


def test_a_command_whose_folder_has_other_settings_by_now_spends_nothing(study, copy, monkeypatch):
    """Two that begin at once, before any run binds: the later one wins."""
    for name in NAMES:
        shutil.rmtree(copy / name)
    original = running.finish

    def late(*arguments, **more):
        now = stored(copy)
        now["settings"]["clipping.norm"] = 2e-3
        Workdir(copy).study_json.write_text(json.dumps(now))
        return original(*arguments, **more)

    monkeypatch.setattr(running, "finish", late)
    study(copy).refuses("config.clipping.norm=0.002, as another command has begun meanwhile")
    assert not Workdir(copy / NAMES[0]).ledger.exists()


def test_a_damaged_file_is_made_again_from_the_runs(study, copy):
    before = [{**row, "seconds": ""} for row in read_csv(copy, "study.csv")]
    ledgers = [Workdir(copy / name).ledger.read_bytes() for name in NAMES]
    path = Workdir(copy).study_json
    path.write_text("{")
    study(copy).refuses("study.json is not JSON; delete it, and the same command takes its rows from the runs' folders")
    path.unlink()
    assert study(copy).succeeds().out.count("is finished with the same settings") == 4
    assert [{**row, "seconds": ""} for row in read_csv(copy, "study.csv")] == before
    assert [Workdir(copy / name).ledger.read_bytes() for name in NAMES] == ledgers
    path.unlink()
    study(copy, "--config.clipping.norm=2e-3").refuses("with config.clipping.norm=0.001, which is now 0.002; restore")
    assert [Workdir(copy / name).ledger.read_bytes() for name in NAMES] == ledgers


def test_a_damaged_run_takes_nothing_from_the_table(study, copy):
    (copy / NAMES[0] / "release" / "ledger.jsonl").write_text("{}\n")
    (copy / NAMES[1] / "release" / "synthetic.npz").write_bytes(b"no archive")
    result = study(copy)
    assert "the joint cost is not known: " in result.out and "ledger.jsonl" in result.out
    assert f"no image of {NAMES[1]} is shown: " in " ".join(result.out.split())
    assert "the joint cost is not known: " in (copy / "internal" / "study.html").read_text()
    assert len(read_csv(copy, "study_table.csv")) == 2


def test_a_look_at_sensitive_images_must_be_acknowledged(privimage, config, tmp_path):
    call = ("study", "--config", config, "--workdir", tmp_path / "w", "--methods=dpdm")
    privimage(*call).refuses("on the images of config.data without noise", "--acknowledge_looks")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "culprits"),
    [
        ((), ["--methods is missing"]),
        (("--methods=privimage,nothing",), ["--methods: 'nothing' is not known", "dpdm"]),
        (("--methods=dpdm,",), ["--methods=dpdm, lacks a value"]),
        (("--methods=dpdm,dpdm",), ["--methods gives dpdm twice"]),
        (("--methods=dpdm", "--epsilons=1,ten"), ["--epsilons: 'ten' is not accepted", "numbers above 0"]),
        (("--methods=dpdm", "--epsilons=1,-1"), ["--epsilons: '-1' is not accepted"]),
        (("--methods=dpdm", "--epsilons=nan"), ["--epsilons: 'nan' is not accepted"]),
        (("--methods=dpdm", "--epsilons=1,1.0"), ["--epsilons gives 1 twice"]),
        (("--methods=dpdm", "--seeds=0"), ["--seeds=0 is not accepted", "from 1 to 1000"]),
        (("--methods=dpdm", "--seeds=many"), ["--seeds=many is not accepted"]),
        (("--methods=dpdm", "--share=0/2"), ["--share=0/2 is not accepted", "--share=1/4"]),
        (("--methods=dpdm", "--share=3/2"), ["--share=3/2 is not accepted"]),
        (("--methods=dpdm", "--share=2"), ["--share=2 is not accepted"]),
        (("--methods=dpdm", "--method=random"), ["config.method=random names a method beside --methods"]),
        (("--methods=privimage", "--config.pretrain.steps=0"), ["config.method=privimage", "config.pretrain.steps"]),
        (("--methods=dpdm", "--epsilons=1", "--config.privacy.epsilon=3"), ["does not count beside --epsilons"]),
        (("--methods=dpdm,random", "--seeds=900"), ["the study has 1800 runs", "at most 1000"]),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_anything_runs(privimage, config, tmp_path, flags, culprits):
    privimage("study", "--config", config, "--workdir", tmp_path / "w", *flags, "--acknowledge_looks").refuses(
        *culprits
    )
    assert not (tmp_path / "w").exists()


def test_a_budget_that_cannot_be_met_is_refused_before_the_first_run(study, tmp_path):
    folder, several = tmp_path / "w", ("--methods=dpdm,privimage", "--epsilons=10,0.1", "--config.data.n=60")
    study(folder, *several).refuses(f"{FAILED}: the semantic query alone costs epsilon")
    means = ("--methods=dp_feta", "--config.data.n=60", "--config.warmup.subset_size=61")
    study(folder, *means).refuses("config.warmup.subset_size=61 is larger than the N=60")
    study(folder, "--config.data.path=/nowhere.npz").refuses(
        f"{NAMES[0]}: config.data.path=/nowhere.npz does not exist"
    )
    assert not folder.exists()


def test_finished_runs_need_their_images_no_more(study, copy):
    images = pathlib.Path(json.loads(Workdir(copy).study_json.read_text())["settings"]["data.path"])
    images.rename(images.with_suffix(".away"))
    try:
        study(copy).succeeds()
    finally:
        images.with_suffix(".away").rename(images)


def test_what_sees_real_images_is_kept_out_of_the_public_cache_of_all_runs(study, tmp_path):
    folder = tmp_path / "w"
    said = study(folder, f"--config.private_cache={folder / 'public_cache'}")
    said.refuses("are one folder, or one lies in the other; what sees real images must stay apart")
    assert not any((folder / name).exists() for name in NAMES)


def planned(privimage, monkeypatch, *flags):
    """What `privimage study` says of such a study, and its runs by name; none is made."""
    found = {}
    monkeypatch.setattr(running, "run", lambda runs, *_: found.update({one.name: one.config for one in runs}))
    said = privimage("study", *flags, "--epsilons=10", "--acknowledge_looks").succeeds().out
    return said, found


def test_a_method_wins_over_what_all_runs_share(privimage, config, tmp_path, monkeypatch):
    flags = ("--methods=privimage,dpdm,dpgan", "--seeds=2", "--config.pretrain.steps=7")
    said, runs = planned(privimage, monkeypatch, "--config", config, "--workdir", tmp_path / "w", *flags)
    assert "config.pretrain.steps=7 does not count for dpdm, dpgan, which decides that itself" in said
    assert {name: one.pretrain.steps for name, one in runs.items() if name.endswith("seed0")} == {
        "privimage-eps10-seed0": 7,
        "dpdm-eps10-seed0": 0,
        "dpgan-eps10-seed0": 0,
    }


@pytest.mark.parametrize(("precision", "finished"), [("auto", True), ("float32", True), ("bfloat16", False)])
def test_a_number_format_that_is_asked_for_is_a_setting(privimage, config, made, monkeypatch, precision, finished):
    """Only "auto" leaves it to the devices, and the run was made on a CPU."""
    flags = ("--config", config, "--workdir", made[0], *FLAGS, f"--config.precision={precision}")
    _, runs = planned(privimage, monkeypatch, *flags)
    assert rows.is_finished(Workdir(made[0] / NAMES[0]), runs[NAMES[0]]) == finished


@pytest.mark.parametrize("flag", [(), ("--method=",), ("--config.method=",)])
def test_a_config_file_that_names_a_method_can_be_studied(privimage, config, tmp_path, monkeypatch, flag):
    named = tmp_path / "named.py"
    named.write_text(config.read_text() + "\n\nwhole = get_config\n\n\ndef get_config():\n"
                     "    config = whole()\n    config.method = 'dpdm'\n    return config\n")  # fmt: skip
    call = ("--config", named, "--workdir", tmp_path / "w", "--methods=random,dpdm", *flag)
    said, runs = planned(privimage, monkeypatch, *call)
    assert [(one.method, one.pretrain.steps > 0) for one in runs.values()] == [("random", True), ("dpdm", False)]
    assert "does not count" not in said


PLACE = {"ID": 7, "MIN": 3, "STEP": 2, "COUNT": 4}  # of the tasks 3, 5, 7, 9
ARRAY = {f"SLURM_ARRAY_TASK_{name}": str(number) for name, number in PLACE.items()}


@pytest.mark.parametrize(
    ("given", "environment", "share"),
    [
        (None, {}, plan.Share(0, 1)),
        ("2/3", {}, plan.Share(1, 3)),
        (None, ARRAY, plan.Share(2, 4)),
        ("1/1", ARRAY, plan.Share(0, 1)),  # the flag is nearer
        (None, {**ARRAY, "SLURM_ARRAY_TASK_ID": "3"}, plan.Share(0, 4)),
        (None, {"JOB_COMPLETION_INDEX": "0", "PRIVIMAGE_SHARES": "2"}, plan.Share(0, 2)),
        (None, {"JOB_COMPLETION_INDEX": "1", "PRIVIMAGE_SHARES": "2"}, plan.Share(1, 2)),
    ],
)
def test_a_share_is_what_the_scheduler_says(given, environment, share):
    assert plan.share(given, environment) == share


@pytest.mark.parametrize(
    ("environment", "culprit"),
    [
        ({**ARRAY, "SLURM_ARRAY_TASK_ID": "6"}, "SLURM_ARRAY_TASK_ID=6"),
        ({**ARRAY, "SLURM_ARRAY_TASK_COUNT": "2"}, "SLURM_ARRAY_TASK_COUNT=2"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN=,"),
        ({"JOB_COMPLETION_INDEX": "0"}, "PRIVIMAGE_SHARES= does not say of how many"),
        ({"JOB_COMPLETION_INDEX": "2", "PRIVIMAGE_SHARES": "2"}, "PRIVIMAGE_SHARES=2 does not say of how many"),
    ],
)
def test_a_scheduler_that_says_too_little_is_told(environment, culprit):
    with pytest.raises(UserError, match=f"{culprit}.*give --share"):
        plan.share(None, environment)


@given(st.integers(0, 40), st.integers(1, 12))
def test_shares_part_all_runs(n, count):
    runs = list(range(n))
    parts = [plan.Share(index, count).of(runs) for index in range(count)]
    assert sorted(number for part in parts for number in part) == runs
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=5, unique=True))
def test_every_budget_has_a_folder_of_its_own(epsilons):
    runs = plan.name_runs(["dpdm"], epsilons, [0], lambda values: None)
    assert len({one.name for one in runs}) == len(epsilons)
    assert [plan.epsilons(str(one.values["privacy.epsilon"]))[0] for one in runs] == epsilons


def test_one_seed_has_no_spread_and_a_failure_no_number():
    same = {"method": "dpdm", "privacy.epsilon": 1.0}
    rows = [
        {**same, "run": "a", "seed": 0, "status": "done", "fid": 2.0, "epsilon": 0.9},
        {**same, "run": "b", "seed": 1, "status": "failed", "error": "a sentence."},
    ]
    told = {"runs": 1, "failed": 1, "seeds": "0", "fid": 2.0, "epsilon": 0.9}
    assert summarize(rows) == [{**same, **told}]
    rows[1] |= {"status": "done", "fid": 4.0, "epsilon": 0.8}
    assert summarize(rows) == [{**same, **told, "runs": 2, "failed": 0, "seeds": "0 1", "fid": 3.0, "fid_sd": 2**0.5}]
