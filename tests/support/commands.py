"""Drives the command line as a user does, for the tests of what it says and of its exit status."""

import dataclasses
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from privimage_jax import main
from privimage_jax.cli import devices
from privimage_jax.run import inputs
from privimage_jax.training.mesh import make_mesh

SUPPORT = pathlib.Path(__file__).parent
ROOT = SUPPORT.parents[1]
PYTHONPATH = os.pathsep.join(map(str, (SUPPORT, ROOT)))  # for other processes: these modules, and this checkout
SCRIPT = pathlib.Path(sys.executable).with_name("privimage")


@dataclasses.dataclass(frozen=True)
class Result:
    """How a command ended and what it said."""

    status: int
    out: str
    err: str

    def refuses(self, *culprits: str) -> None:
        """Asserts one sentence on standard error that names every culprit, and exit status 2."""
        assert self.status == 2, self
        assert self.err.startswith("privimage: error: ") and self.err.endswith(".\n"), self.err
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.out + self.err
        for culprit in culprits:
            assert culprit in self.err, (culprit, self.err)

    def succeeds(self) -> "Result":
        """Asserts exit status 0 and silence on standard error."""
        assert (self.status, self.err) == (0, "")
        return self


def in_process(monkeypatch) -> None:
    """Lets `main` run in this process, on one device and with the tests' own jax set-up."""
    mesh = make_mesh(jax.devices()[:1])
    monkeypatch.setattr(ConfigDict, "__str__", lambda config: "")  # absl writes each down twice, for its own help
    monkeypatch.setattr(devices, "start", lambda *_: None)
    monkeypatch.setattr(inputs, "make_mesh", lambda: mesh)


def caller(capsys, monkeypatch) -> Callable[..., Result]:
    """`call("run", "--config", …) -> Result` in this process, on one device and with the tests' own jax set-up."""
    in_process(monkeypatch)

    def call(*arguments) -> Result:
        capsys.readouterr()
        status = main.main(["privimage", *map(str, arguments)])
        return Result(status, *capsys.readouterr())

    return call


def start(*arguments, cwd, **more) -> subprocess.Popen:
    """Starts the installed console script; these modules are importable, as config files need `pipelines`."""
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    return subprocess.Popen(
        [SCRIPT, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more},
    )


def finish(process: subprocess.Popen) -> Result:
    """Waits for a started script."""
    out, err = process.communicate(timeout=120)
    return Result(process.returncode, out or "", err)


def write_config(folder: pathlib.Path, data: pathlib.Path) -> pathlib.Path:
    """A config file of the smallest experiment, on the image sets in `data`."""
    path = folder / "tiny.py"
    path.write_text(
        "import pathlib\n"
        "from pipelines import tiny_config\n"
        "def get_config():\n"
        f"    return tiny_config(pathlib.Path({str(data)!r}))\n"
    )
    return path
