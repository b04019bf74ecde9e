"""The parts of a first light: what is kept, what is tried again, and what is said when something fails."""

import json
import os
import subprocess
import sys
import time

import pytest
import quick
from commands import PYTHONPATH
from small_models import use_small_models

from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.light import driver, parts
from privimage_jax.light.kept import Kept
from privimage_jax.light.rows import check, note

MACHINE = {
    "kind": "machine",
    "device": "Abacus <1>",
    "platform": "cpu",
    "devices": 1,
    "precision": "float32",
    "jax": "1",
}
SETTINGS = parts.Settings([8, 16, 32], [1, 2, 4], ["bfloat16", "float32"], 2)


def small_config():
    config = use_small_models(base.get_config())
    config.data.n, config.data.image_size, config.data.channels = 60, 4, 1
    config.data.class_names = ("a", "b", "c")
    return config


class Machine:
    """Stands for the child processes: a part's rows, or its failure."""

    def __init__(self, out, config):
        self.out, self.config = out, config
        self.ran, self.answers = [], {}

    def __call__(self, part, seconds):
        if part.name == parts.MACHINE:
            Kept(self.out).put(parts.MACHINE, [MACHINE])
            return 0, ""
        self.ran.append(part.name)
        status, answer = self.answers.get(part.name, (0, [note(f"{part.name} was here.")]))
        if status == 0:
            driver.open_kept(self.config, self.out).put(part.name, answer)
            return 0, ""
        return status, answer

    def light(self, minutes=1.0):
        """Runs the command once, and gives its rows and its page."""
        self.ran = []
        driver.run(self.config, SETTINGS, self.out, minutes, self)
        return self.results()

    def results(self):
        return json.loads((self.out / driver.JSON).read_text()), (self.out / driver.PAGE).read_text()


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "light", small_config())


def test_the_most_telling_parts_come_first_and_none_comes_twice(machine):
    rows, page = machine.light()
    ran = list(machine.ran)
    assert ran[:8] == [
        *("clipping", "replay", "resume", "devices"),
        *("benchmark-float32-16-2", "forecast", "peers", "vmap"),
    ]
    away = [sum(a != b for a, b in zip(name.split("-")[1:], ("float32", "16", "2"), strict=True)) for name in ran[8:]]
    assert away == sorted(away) and away[0] == 1 and len(ran) == len(set(ran)) == 7 + 2 * 3 * 3
    assert [row["kind"] for row in rows] == ["machine", *["note"] * len(ran)]
    assert "Abacus &lt;1&gt;" in page and "No check has run yet." in page
    assert machine.light() == (rows, page) and machine.ran == []


def test_another_config_starts_anew(machine):
    machine.light()
    machine.config.data.channels = 3
    machine.light()
    assert len(machine.ran) > 6


def test_a_part_that_fails_is_named_and_tried_again_at_the_end(machine):
    machine.answers = {
        "clipping": (None, ""),
        "replay": (1, "Traceback\nRuntimeError: <lost>\n"),
        "vmap": (2, "privimage: error: it does not fit.\n"),
    }
    rows, page = machine.light()
    said = {row["part"]: row["text"] for row in rows if row["kind"] == "note"}
    assert said["clipping"].startswith("clipping was not finished in ")
    assert said["replay"] == "replay failed: RuntimeError: <lost> (all of it: parts/replay.log)."
    assert said["vmap"] == "vmap: it does not fit."
    assert "RuntimeError: &lt;lost&gt;" in page and "resume" not in machine.ran
    assert (machine.out / "parts" / "replay.log").read_text().startswith("Traceback")
    machine.answers = {}
    machine.light()
    assert machine.ran == ["clipping", "replay", "resume"]


def test_a_check_that_fails_is_an_error_each_time(machine):
    machine.answers = {"clipping": (0, [check("too much <of it>", 2.0, 1.0, method="vmap"), check("fine", 0.0, 0.0)])}
    for _ in range(2):
        with pytest.raises(UserError, match=r"1 check\(s\) of this machine failed, the first one of: too much"):
            machine.light()
        assert "clipping" in machine.ran
    _, page = machine.results()
    assert "1 of 2 checks failed" in page and "too much &lt;of it&gt;" in page and "FAILED" in page


def test_what_is_not_a_number_fails():
    row = check("", float("nan"), 1.0)
    assert (row["ok"], row["value"]) == (False, None)


def test_no_part_begins_when_the_time_is_over(machine, monkeypatch):
    clock = iter(range(0, 10**6, 20))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    rows, page = machine.light(minutes=2)
    assert 0 < len(machine.ran) < 4
    assert "Not run yet: " in page and "The same command goes on." in page


def test_a_machine_without_devices_is_refused(machine):
    with pytest.raises(UserError, match=r"cannot be asked \(no backend\)"):
        driver.run(machine.config, SETTINGS, machine.out, 1.0, lambda part, seconds: (1, "no backend"))


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        ([], ["--out is missing"]),
        (["--out=o", "--minutes=0"], ["--minutes=0", "--minutes=8"]),
        (["--out=o", "--precisions=int8"], ["--precisions: 'int8'"]),
        (["--out=o", "--batch_sizes=61", "--config.data.n=60"], ["--batch_sizes: 61"]),
        (["--out=file"], ["--out=file is no folder"]),
        (["--out=o", "--batch_sizes=8", "--part=machina"], ["run the command without --part"]),
    ],
)
def test_bad_input_is_refused(privimage, config, tmp_path, monkeypatch, arguments, culprits):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    privimage("first-light", "--config", config, *arguments).refuses(*culprits)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_steps_replay_and_resume_bit_for_bit_in_real_processes(privimage, tmp_path, monkeypatch):
    path, out, make = tmp_path / "small.py", tmp_path / "light", parts.make
    path.write_text(
        "from privimage_jax.configs import base\n"
        "from small_models import use_small_models\n"
        "def get_config():\n"
        "    config = use_small_models(base.get_config())\n"
        "    config.data.image_size, config.data.channels = 4, 1\n"
        "    return config\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([PYTHONPATH, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("XLA_FLAGS", " ".join([*quick.FLAGS, "--xla_force_host_platform_device_count=2"]))
    monkeypatch.setattr(
        parts, "make", lambda *given: [part for part in make(*given) if part.name in ("replay", "resume")]
    )
    said = privimage("first-light", "--config", path, "--out", out).succeeds().out
    rows = json.loads((out / driver.JSON).read_text())
    assert rows[0]["devices"] == 2 and "2 × cpu (cpu)" in said and "parts are left" not in said
    assert [(row["part"], row["ok"]) for row in rows[1:]] == [("replay", True), *[("resume", True)] * 3]


def test_it_needs_few_packages_and_leaves_the_devices_to_its_parts():
    """A machine that is lent may have no more than jax and its kin; and a TPU belongs to one process at a time."""
    program = (
        "import sys, privimage_jax.light.driver\n"
        "from jax._src import xla_bridge\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), dict(xla_bridge._backends))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("] {}\n"), done
    others = ("PIL", "scipy", "sklearn", "matplotlib", "tensorboardX", "tensorflow_datasets", "dp_accounting", "orbax")
    assert not [name for name in others if f"'{name}'" in done.stdout]
