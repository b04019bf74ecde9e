"""The launch scripts, without installing anything: a folder of pretended programs stands for the environment."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def environment(tmp_path):
    """A virtual environment that was installed already, whose `privimage` prints its arguments."""
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "privimage").write_text('#!/bin/sh\necho "privimage $*"\n')
    (programs / "privimage").chmod(0o755)
    stamp = tmp_path / "venv" / ".installed-plain"
    stamp.touch()
    os.utime(stamp, (2**32, 2**32))  # newer than setup.py, whenever that was checked out
    return {**os.environ, "PRIVIMAGE_VENV": str(tmp_path / "venv")}


def bash(command, environment):
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_arguments_of_the_quickstart_reach_the_program(environment):
    done = bash("launch/quickstart.sh --config.privacy.epsilon=5", environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("privimage run --config configs/quickstart.py --workdir runs/quickstart")
    assert "--config.privacy.epsilon=5" in done.stdout


def test_an_old_python_is_named_and_leaves_the_shell_open(environment, tmp_path):
    old = tmp_path / "python3.6"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = bash("source launch/environment.sh; echo status $?", {**environment, "PYTHON": str(old)})
    assert "needs Python 3.11 or newer" in done.stderr
    assert done.stdout == "status 2\n"


def test_a_failed_installation_is_tried_again(environment, tmp_path):
    (tmp_path / "venv" / ".installed-plain").unlink()
    python = tmp_path / "venv" / "bin" / "python"
    python.write_text('#!/bin/sh\ncase "$*" in *install*) exit 1;; esac\n')
    python.chmod(0o755)
    assert bash("launch/quickstart.sh", environment).returncode == 2
    assert not (tmp_path / "venv" / ".installed-plain").exists()


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "launch").glob("*.sh")))
def test_scripts_are_sound_bash(script):
    assert bash(f"bash -n launch/{script}", dict(os.environ)).returncode == 0
