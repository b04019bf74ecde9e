"""Standard output that is closed, cut off or plain ASCII, and devices that are not there: by the real script."""

import json
import os
import subprocess
import sys

import pytest
from commands import PYTHONPATH, SCRIPT, Result
from pipelines import release_bytes

import privimage_jax
from privimage_jax.cli import streams
from privimage_jax.main import main
from privimage_jax.storage.workdir import Workdir

PLAN = ("--config.data.n=60", "--config.finetune.enabled=False")  # without what takes long to solve


def shell(command, *arguments, **variables) -> Result:
    """What `command` says, a line of bash in which "$@" is the script with these arguments."""
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, "bash", SCRIPT, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "JAX_PLATFORMS": "cpu", **variables},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def test_a_file_that_is_told_of_sensitive_images_is_the_owners_alone(tmp_path, monkeypatch):
    """A log of `nohup`, or the file that a scheduler opened; what a public command prints stays as it is."""
    for name, mode in (("run", 0o600), ("sweep", 0o600), ("audit", 0o600), ("budget", 0o644), ("ledger", 0o644)):
        log = tmp_path / name
        log.touch(0o644)
        log.chmod(0o644)
        with open(log, "w") as stdout, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", stdout)
            assert main(["privimage", name]) == 2
        assert log.stat().st_mode & 0o777 == mode, name


def test_the_version_is_one_line():
    assert shell('"$@"', "--version").succeeds().out == f"privimage {privimage_jax.__version__}\n"


@pytest.mark.parametrize("arguments", [("--help",), ("ledger", "{run}", "--verify")])
def test_a_reader_that_has_gone_is_met_with_silence(finished, arguments):
    """As after `| head -1`, but its end of the pipe is closed before anything is printed."""
    arguments = [argument.format(run=finished.root) for argument in arguments]
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run([SCRIPT, *arguments], stdout=writing, stderr=subprocess.PIPE, env=environment, timeout=100)
    os.close(writing)
    assert (done.returncode, done.stderr) == (streams.CUT_OFF, b"") and streams.CUT_OFF == 141


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_a_command_that_cannot_print_has_not_failed(config, closed):
    assert shell(f'"$@" {closed}', "budget", "--config", config, *PLAN).succeeds()


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A whole run of a script whose standard output is closed; without what takes long to compile."""
    root, without = tmp_path_factory.mktemp("closed") / "run", ("evaluate.enabled=False", "finetune.enabled=False")
    settings = [f"--config.{setting}" for setting in ("selection.method=random", "pretrain.steps=0", *without)]
    shell('"$@" >&-', "run", "--config", config, "--workdir", root, *settings).succeeds()
    return Workdir(root)


def test_a_run_without_standard_output_is_whole(finished):
    released = release_bytes(finished)
    assert {"ledger.jsonl", "report.html", "synthetic.npz"} <= released.keys()
    assert json.loads(released["ledger.jsonl"])["kind"] == "open" and released["report.html"].endswith(b"</html>\n")


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_character_that_standard_output_lacks_is_escaped(variables):
    page = shell('"$@"', "sweep", "--help", **variables).succeeds().out
    assert page.isascii() and "then the second ones, \\u2026" in page


@pytest.mark.parametrize(("command", "platform"), [("audit", "cuda"), ("benchmark", "nix")])
def test_devices_that_are_not_there_are_one_sentence(config, tmp_path, command, platform):
    arguments = (command, "--config", config, *(("--workdir", tmp_path / "audit") if command == "audit" else ()))
    result = shell('"$@"', *arguments, JAX_PLATFORMS=platform, CUDA_VISIBLE_DEVICES="")
    result.refuses(f"jax finds no device for JAX_PLATFORMS={platform} (")
    assert not (tmp_path / "audit").exists()
