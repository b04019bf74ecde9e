"""A sweep of many tiny runs in one process: does it keep memory, files or threads of runs that are over?

    python tests/support/soak.py --runs 200

After each run the process's memory, open files and threads are noted, and what the run added to the folder. Printed is
how much each grew from one run to the next, by the slope of a straight line through all runs but the first quarter,
beside the mean.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import tempfile

import commands
import numpy as np
import quick

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(quick.FLAGS)
os.environ.setdefault("MPLBACKEND", "Agg")

from privimage_jax import main as cli  # noqa: E402
from privimage_jax.commands import sweep  # noqa: E402
from privimage_jax.commands.many_runs import rows  # noqa: E402


@dataclasses.dataclass
class Use:
    """What is in use after a run: MiB, numbers, and the MiB of all runs on the disk."""

    memory: float
    files: int
    threads: int
    disk: float


def use(folder: pathlib.Path) -> Use:
    """What is in use now."""
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    disk = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())
    memory = int(status["VmRSS"].split()[0]) / 1024
    return Use(memory, len(os.listdir("/proc/self/fd")), int(status["Threads"]), disk / 2**20)


def soak(folder: pathlib.Path, runs: int) -> list[Use]:
    """Sweeps over so many seeds; what was in use after each run."""
    config, found = commands.write_config(folder, folder), []
    original = rows.finish

    def noted(*args, **kwargs):
        row = original(*args, **kwargs)
        found.append(use(folder))
        return row

    sweep.finish = noted
    seeds = ",".join(map(str, range(runs)))
    arguments = [
        "sweep",
        f"--config={config}",
        f"--workdir={folder / 'sweep'}",
        "--over",
        f"seed={seeds}",
        "--acknowledge_looks",
    ]
    try:
        status = cli.main(["privimage", *arguments, "--config.privacy.accountant=rdp"])
    finally:
        sweep.finish = original
    if status:
        raise SystemExit(f"the sweep ended with status {status}")
    return found


def growth(values: list[float]) -> tuple[float, float]:
    """Slope from run to run, and the mean, of all but the first quarter."""
    late = np.asarray(values[len(values) // 4 :], float)
    return float(np.polyfit(np.arange(len(late)), late, 1)[0]), float(late.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(pathlib.Path(folder), options.runs)
    for field in dataclasses.fields(Use):
        values = [getattr(each, field.name) for each in found]
        slope, mean = growth(np.diff(values).tolist() if field.name == "disk" else values)
        print(f"{field.name}: {mean:.1f} on average, {slope:+.4f} a run", flush=True)


if __name__ == "__main__":
    sys.exit(main())
