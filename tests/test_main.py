"""The command line: every mistake is answered in one sentence with exit status 2, every command does what it says."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from commands import finish, start

import privimage_jax.configs
from privimage_jax.cli import devices, parsing
from privimage_jax.cli.table import COMMANDS
from privimage_jax.settings import config_files, import_strings
from privimage_jax.settings.methods import METHODS

CONFIGS = pathlib.Path(privimage_jax.configs.__path__[0])
N = "--config.data.n=60"


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        ([], ["a command is missing", "run, train-query"]),
        (["runn"], ["'runn' is not a command", "run, train-query"]),
        (["run"], ["--config is missing"]),
        (["run", "--config"], ["the config file '' does not exist"]),
        (["run", "--config", "nowhere.py", "--workdir", "w"], ["'nowhere.py' does not exist", "quickstart.py"]),
        (["run", "--config", "{config}"], ["--workdir is missing"]),
        (["run", "--config", "{config}", "--workdir"], ["missing value for flag --workdir"]),
        (["run", "--config", "{config}", "--workdir", ""], ["--workdir is missing"]),
        (["run", "--config", "{config}", "--workdir", "gs://b/run"], ["gs://b/run is an object store"]),
        (["run", "--config", "{config}", "--workdir", "w", "more"], ["unexpected argument 'more'"]),
        (["run", "--config", "{config}", "--workdri", "w"], ["'workdri'", "workdir"]),
        (["budget", "--config", "{config}"], ["config.data.n is 0", "--config.data.n=60000"]),
        (["ledger"], ["give the PATH of one or more workdirs", "not nothing"]),
        (["ledger", "nowhere"], ["nowhere/release/ledger.jsonl does not exist", "a folder release/ or a ledger file"]),
        (["ledger", "no\x1b[2J\nwhere"], ["no\\x1b[2J\\nwhere/release/ledger.jsonl does not exist"]),
        (["ledger", "--workdir", "nowhere"], ["'workdir'"]),
        (["ledger", "--method=dpdm", "nowhere"], ["this command takes no --method"]),
        (["run", "--method", "dpdm"], ["--config is missing"]),
        (["budget", "--config", "{config}", "--method"], ["--method has no value; give ", "privimage, ", " dpdm, "]),
        (["budget", "--config", "{config}", "--method=dp-dm"], ["config.method='dp-dm' is not accepted; give "]),
        (["budget", "--config", "{config}", "--config.method=a"], ["config.method='a' is not accepted; give "]),
        (
            ["budget", "--config", "{config}", "--method=lora", "--config.method=dpdm"],
            ["two methods are named, 'lora' and 'dpdm'; give one --method."],
        ),
        (
            ["budget", "--config", "{config}", "--method=dpdm", "--config.pretrain.steps=100"],
            ["config.method=dpdm means config.pretrain.steps=0; it is 100: "],
        ),
        (
            ["sweep", "--config", "{config}", "--workdir=w", "--method=dpdm", "--over=pretrain.steps=0,100"],
            ["config.method=dpdm means config.pretrain.steps=0; it is 100: "],
        ),
        (
            ["sweep", "--config", "{config}", "--workdir=w", "--method=dpdm", "--over=method=dpdm,random"],
            ["two methods are named, 'dpdm' and 'random'; give one --method."],
        ),
        (["prepare"], ["give the NAME of one TFDS set"]),
        (["prepare", "mnist", "cifar10"], ["give the NAME of one TFDS set, not mnist cifar10"]),
    ],
)
def test_a_command_that_does_not_fit_is_refused(privimage, config, tmp_path, monkeypatch, arguments, culprits):
    monkeypatch.chdir(tmp_path)
    privimage(*(str(argument).format(config=config) for argument in arguments)).refuses(*culprits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("setting", "culprits"),
    [
        ("epsilon=1", ["config.epsilon is not a known setting", "did you mean config.privacy.epsilon?"]),
        ("privacy=1", ["config.privacy is a section", "config.privacy.accountant"]),
        ("data.paht=x", ["config.data.paht", "did you mean config.data.path?"]),
        ("model.kwargsx=1", ["config.model.kwargsx is not a known setting"]),
        ("privacy.epsilon=ten", ["--config.privacy.epsilon=ten", "configs/base.py"]),
        ("privacy.epsilon=0", ["config.privacy.epsilon=0.0", "a number above 0"]),
        ("privacy.epsilon=-1", ["config.privacy.epsilon=-1.0", "a number above 0"]),
        ("privacy.epsilon=nan", ["config.privacy.epsilon=nan"]),
        ("privacy.delta=0.02", ["config.privacy.delta=0.02 is not below 1/N", "N=60", "0 for the default"]),
        ("data.n=2", ["N=2 images", "at least 3"]),
        ("finetune.batch_size=61", ["config.finetune.batch_size=61", "N=60", "at most 60"]),
        ("query.noise_multiplier=0.1", ["privacy.epsilon = 10", "raise config.query.noise_multiplier"]),
        ("seed=1.5", ["--config.seed=1.5"]),
        ("seed=9999999999", ["config.seed=", "a whole number from 0 to 2^32 - 1"]),
        ("data.n=" + "9" * 400, ["config.data.n holds a whole number of more than 64 bits"]),
        (
            "sample.class_weights=(1,99999999999999999999)",
            ["config.sample.class_weights holds a whole number of more than"],
        ),
        (
            "model.kwargs.depth=99999999999999999999",
            ["config.model.kwargs.depth holds a whole number of more than 64 bits"],
        ),
        ("name=\udcff", ["config.name holds bytes that are not UTF-8"]),
        ("data.class_names=('a','\ud800')", ["config.data.class_names holds bytes that are not UTF-8"]),
        ("evaluate.enabled=maybe", ["--config.evaluate.enabled=maybe"]),
        ("evaluate.classifier=cnn", ["config.evaluate.classifier is not a known", "config.evaluate.classifiers?"]),
        ("evaluate.classifiers=()", ["config.evaluate.classifiers=()", "one or more models with different names"]),
        ("evaluate.classifiers=('cnn','mine:cnn')", ["models with different names"]),
        ("evaluate.classifier_seeds=0", ["config.evaluate.classifier_seeds=0", "at least 1"]),
        ("evaluate.recipe=slow", ["config.evaluate.recipe='slow'", "quick, benchmark, benchmark_cifar"]),
        ("evaluate.classifier_kwargs.width=8", ["width=8 is of no model", "classifier_kwargs.Classifier.width"]),
        ("evaluate.classifier_kwargs.resnext.depth=11", ["classifier_kwargs.resnext has arguments", "Classifier"]),
        ("evaluate.classifier_kwargs.vgg.depth=11", ["a section that is not there", "vgg"]),
        ("evaluate.extractors=vgg", ["config.evaluate.extractors=('vgg',)", "give a list of query, inception or"]),
        ("sample.n=1", ["config.sample.n=1", "at least 2"]),
        ("sample.class_weights=('a','b')", ["config.sample.class_weights=('a', 'b')", "one number"]),
        ("data.class_names=('a','a')", ["config.data.class_names=('a', 'a')", "distinct names"]),
        ("data.source=hdf5", ["config.data.source='hdf5'", "tfds, folder"]),
        ("public.path=", ["config.public.path is empty"]),
        ("warmup.steps=9", ["config.warmup.steps makes no difference with config.warmup.enabled=False; leave it out"]),
    ],
)
def test_a_setting_that_is_not_accepted_is_named(privimage, config, setting, culprits):
    privimage("budget", "--config", config, N, f"--config.{setting}").refuses(*culprits)


BASE = "from privimage_jax.configs import base\ndef get_config():\n    config = base.get_config()\n"


@pytest.mark.parametrize(
    ("text", "culprits"),
    [
        ("def get_config(:\n", ["in line 1 with SyntaxError"]),
        ("\nimport no_such_module\n", ["in line 2 with ModuleNotFoundError: No module named 'no_such_module'"]),
        ("def get_config():\n    raise ValueError('no. way\\nout')\n", ["in line 2 with ValueError: no; way out"]),
        ("def get_config():\n    open('/no/such/file')\n", ["in line 2 with FileNotFoundError"]),
        ("x = 1\n", ["has no attribute 'get_config'"]),
        ("def get_config(): pass\n", ["returns NoneType", "let it return the changed ConfigDict"]),
        ("def get_config(): return {}\n", ["returns dict"]),
        (f"{BASE}    config.privacy.epsilonn = 1\n    return config\n", ["in line 4", 'Key "epsilonn" does not exist']),
        (
            f"{BASE}    config.privacy.epsilon = 'x'\n    return config\n",
            ["gives in line 4 epsilon = 'x', of type str; give a number."],
        ),
        (
            f"{BASE}    config.data.class_names = 'cat, dog'\n    return config\n",
            ["gives in line 4 class_names = 'cat, dog', of type str; give ('cat', 'dog')."],
        ),
        (f"{BASE}    config.seed = 1.5\n    return config\n", ["seed = 1.5, of type float; give a whole number."]),
        (f"{BASE}    config.data = 3\n    return config\n", ["data = 3, of type int; give a section, whose settings"]),
        (
            f"{BASE}    with config.unlocked(): config.privacy.epsilonn = 1\n    return config\n",
            ["config.privacy.epsilonn is not a known setting", "config.privacy.epsilon?"],
        ),
        (
            "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'seed': 1})\n",
            ["is missing; start your config from configs/base.py"],
        ),
        (f"{BASE}    config.data.image_size = 2\n    return config\n", ["config.data.image_size=2", "from 4 to 1024"]),
    ],
)
def test_a_config_file_that_fails_is_named_with_its_line(privimage, tmp_path, text, culprits):
    path = tmp_path / "mine.py"
    path.write_text(text)
    result = privimage("run", "--config", path, "--workdir", tmp_path / "run")
    result.refuses(*culprits)
    assert "config." in result.err or str(path) in result.err
    assert not (tmp_path / "run").exists()


def test_a_config_file_finds_the_modules_beside_it(privimage, tmp_path, monkeypatch):
    """Also those that its settings name; but what is installed comes first."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_it.py").write_text("N = 61\nclass Family:\n    pass\n")
    (tmp_path / "absl.py").write_text("1 / 0\n")
    path = tmp_path / "mine.py"
    path.write_text(f"import absl\nimport beside_it\n{BASE}    config.data.n = beside_it.N\n    return config\n")
    settings = ("--config.generator=beside_it:Family", "--config.finetune.batch_size=9", "--config.finetune.steps=1")
    assert "N = 61" in privimage("budget", "--config", path, *settings).succeeds().out
    assert import_strings.load("beside_it:N", "config.generator") == 61


def test_help_is_no_mistake(privimage):
    for arguments in (["--help"], ["help"]):
        out = privimage(*arguments).succeeds().out
        assert out.startswith("usage: privimage COMMAND") and "configs/base.py" in out
        assert all(f" {name} " in out.replace("\n", " ") for name in (*COMMANDS, "privimage --version"))


def test_code_that_ends_the_program_is_no_success(privimage, tmp_path, monkeypatch):
    (tmp_path / "ending.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    privimage(
        *(
            "run",
            f"--config={CONFIGS / 'quickstart.py'}",
            f"--workdir={tmp_path / 'run'}",
            "--config.generator=ending:A",
        )
    ).refuses("code that the config names ended the program")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_of_its_own(privimage, name):
    out = privimage(name, "-h").succeeds().out
    assert out.startswith(f"privimage {name}: ") and "usage: privimage " in out
    assert "--method NAME" not in out or all(f" {method}" in out for method in METHODS)
    assert max(map(len, out.splitlines())) < 130


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_all_its_flags(privimage, config, monkeypatch, name):
    defined = set()

    def noted(define):
        return lambda flag, *arguments, **more: (defined.add(flag), define(flag, *arguments, **more))

    for kind in ("DEFINE_string", "DEFINE_boolean", "DEFINE_multi_string"):
        monkeypatch.setattr(flags, kind, noted(getattr(flags, kind)))
    takes_config = "--config FILE" in COMMANDS[name].help
    privimage(name, *(["--config", config] if takes_config else []), "--no_such_flag=1").refuses("no_such_flag")
    assert [flag for flag in defined if f"--{flag}" not in COMMANDS[name].help] == []
    assert defined or name == "budget"


def test_the_budget_needs_no_data(privimage, config):
    out = privimage("budget", f"--config={config}", N, "--config.data.path=nowhere.npz").succeeds().out
    assert out.startswith("epsilon = 10, delta = 0.002152, N = 60") and "sigma2" in out
    assert "N delta = 0.13: a mechanism that hands out one random record with that chance meets this delta" in out


def test_overrides_reach_the_config_wherever_they_stand(config):
    """Also arguments of a model that its config file does not give."""
    arguments = [N, "--config.privacy.epsilon=2", "--config", str(config), "--config.model.kwargs.widths=(8, 9)"]
    given, _ = parsing.configured(arguments)
    assert (given.data.n, given.privacy.epsilon, given.model.kwargs.widths) == (60, 2.0, (8, 9))


@pytest.mark.parametrize(
    "setting, value",
    [
        ("data.class_names=cat,dog", ("cat", "dog")),
        ("data.class_names=cat", ("cat",)),
        ("data.class_names=0, 1", ("0", "1")),
        ("data.class_names=('cat, small','dog')", ("cat, small", "dog")),
        ("data.class_names=['cat']", ("cat",)),
        ("data.class_names=", ()),
        ("data.class_names=(l),(m)", ("(l)", "(m)")),
        ("data.class_names='a b'", ("'a b'",)),
        ("data.class_names=O'Neil,d\"or", ("O'Neil", 'd"or')),
        ("data.accept=constant,nearly_black", ("constant", "nearly_black")),
        ("sampler_choice.candidates=1,2.5", (1, 2.5)),
        ("evaluate.classifiers=cnn,resnet9", ("cnn", "resnet9")),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_lists_are_given_as_words(config, setting, value, apart):
    key, _, text = setting.partition("=")
    given = [f"--config.{key}", text] if apart else [f"--config.{setting}"]
    values, _ = parsing.parse(["--config", str(config), *given], "config", of_several=True)  # whatever is switched on
    assert tuple(values.config[key.partition(".")[0]][key.partition(".")[2]]) == value


def test_a_config_takes_an_argument(privimage):
    assert config_files.load(f"{CONFIGS / 'celeba.py'}:64").data.image_size == 64
    privimage("budget", f"--config={CONFIGS / 'quickstart.py'}:8").refuses(
        "quickstart.py takes no text behind the colon; leave out ':8'."
    )
    privimage("budget", f"--config={CONFIGS / 'mnist.py'}:64").refuses("knows no '64'", "mnist.py:dpimagebench.")
    rdp = "--config.privacy.accountant=rdp"
    published = privimage("budget", f"--config={CONFIGS / 'cifar10.py'}:dpimagebench", rdp).succeeds()
    assert "N = 45000" in published.out


@pytest.mark.parametrize("text", [None, "x"])
def test_a_config_may_lie_in_a_folder_with_a_colon(tmp_path, text):
    (tmp_path / "c:d").mkdir()
    file = tmp_path / "c:d" / "q.py"
    file.write_text(
        "from privimage_jax.configs import base\ndef get_config(text='none'):\n"
        "    config = base.get_config()\n    config.name = text\n    return config\n"
    )
    assert config_files.load(f"{file}:{text}" if text else str(file)).name == (text or "none")


def test_a_method_gives_the_config_its_settings(privimage, config):
    """Above the file's, below those of the command line, in whatever order these are."""
    given = ["--config.finetune.lora_rank=3", "--method", "lora", f"--config={config}"]
    found, _ = parsing.configured(given)
    assert (found.method, found.finetune.lora_rank, found.pretrain.steps) == ("lora", 3, 6)
    found, _ = parsing.configured([f"--config={config}", "--config.method", "dpdm"])
    assert (found.method, found.selection.method, found.pretrain.steps) == ("dpdm", "none", 0)
    assert "semantic query" not in privimage("budget", f"--config={config}", N, "--method=dpdm").succeeds().out


def test_a_config_file_may_name_a_method_and_the_command_line_another(privimage, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{BASE}    config.pretrain.steps = 7\n    config.method = 'dpdm'\n    return config\n")
    found = {name: parsing.configured([f"--config={path}", *flag])[0] for name, flag in FLAGS_OF_A_METHOD.items()}
    assert {name: one.method for name, one in found.items()} == {"dpdm": "dpdm", "": "", "random": "random"}
    assert {name: one.pretrain.steps for name, one in found.items()} == {"dpdm": 0, "": 7, "random": 7}
    path.write_text(f"{BASE}    config.method = 'dp-dm'\n    return config\n")
    privimage("budget", f"--config={path}", N).refuses("config.method='dp-dm' is not accepted; give ")


FLAGS_OF_A_METHOD: dict[str, list[str]] = {"dpdm": [], "": ["--config.method="], "random": ["--method=random"]}


def test_preparing_without_tensorflow_says_what_to_install(privimage, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    privimage("prepare", "mnist").refuses('pip install -e ".[prepare]"')


def test_the_installed_script_works_from_anywhere(tmp_path):
    shutil.copy(CONFIGS / "quickstart.py", tmp_path / "mine.py")
    (tmp_path / "elsewhere").mkdir()
    script = start("budget", "--config", tmp_path / "mine.py", "--config.data.n=1438", cwd=tmp_path / "elsewhere")
    assert "sigma1 = 5" in finish(script).succeeds().out
    script = start("budget", "--config", "mine.py", "--config.data.n=0", cwd=tmp_path)
    finish(script).refuses("config.data.n is 0")


def test_flags_are_set_before_jax_starts_and_a_users_own_win(tmp_path):
    """This jax knows all of them, as an unknown one ends the process. A GPU's choices stay in the run."""
    program = f"""if True:
        import json, os, sys
        from privimage_jax.cli import devices
        is_late = "jax" in sys.modules
        devices.start({str(tmp_path / "internal" / "compilation_cache")!r})
        import jax
        print(json.dumps([is_late, os.environ["XLA_FLAGS"].split(), jax.config.jax_compilation_cache_dir,
                          jax.config.jax_persistent_cache_enable_xla_caches, float(jax.numpy.ones(3).sum())]))"""
    own = "--xla_gpu_exclude_nondeterministic_ops=false"
    environment = {**os.environ, "XLA_FLAGS": own, "JAX_PLATFORMS": "cpu"}
    out = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, timeout=100)
    is_late, given, folder, caches, three = json.loads(out.stdout)
    assert not is_late and three == 3
    assert given == [*devices.XLA_FLAGS, own] and "--xla_gpu_exclude_nondeterministic_ops=true" in given
    assert not any("deterministic_ops" in flag and "exclude" not in flag for flag in given)  # it ends autotuning
    assert folder == str(tmp_path / "internal" / "compilation_cache")
    assert caches == "xla_gpu_per_fusion_autotune_cache_dir"


def test_a_full_standard_output_is_no_stack_trace(tmp_path):
    with open("/dev/full", "w") as full:
        finish(start("help", cwd=tmp_path, stdout=full)).refuses("No space left on device")


def test_an_interrupted_script_says_how_to_go_on(config, tmp_path):
    settings = ("--config.query_net.epochs=100000", "--config.privacy.accountant=rdp")
    script = start("run", "--config", config, "--workdir", tmp_path / "run", *settings, cwd=tmp_path)
    deadline = time.monotonic() + 100
    while not list((tmp_path / "run").glob("internal/train-query/checkpoints/[1-9]*")) and time.monotonic() < deadline:
        assert script.poll() is None, finish(script)
        time.sleep(0.1)
    script.send_signal(signal.SIGINT)
    result = finish(script)
    assert result.status == 130, result
    assert result.err == "privimage: interrupted; the same command continues where it stopped.\n"
