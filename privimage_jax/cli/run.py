"""`privimage run`, and a command for each stage."""

from collections.abc import Callable

from privimage_jax.cli import devices
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import CONFIG, configured
from privimage_jax.cluster import distributed, preemption
from privimage_jax.run.stage import STAGES

PROCESSES = """\
Several processes, one command each: add --coordinator=HOST:PORT --num_processes=N --process_id=I (or the variables
PRIVIMAGE_COORDINATOR, PRIVIMAGE_NUM_PROCESSES, PRIVIMAGE_PROCESS_ID), or --coordinator=auto inside SLURM, GKE or a TPU
pod; --start_timeout=SECONDS for how long they wait for each other. launch/ has scripts that do so."""
USAGE = f"""
usage: privimage COMMAND --config FILE --workdir FOLDER [--config.section.key=value ...]

{CONFIG}
--workdir FOLDER             of the run; the same command goes on where it stopped

Example: privimage run --config configs/quickstart.py --workdir runs/quickstart --config.privacy.epsilon=5

{PROCESSES}
"""


def up_to(last: str | None) -> Callable[[list[str]], None]:
    """The command that runs all stages up to and including this one; None for all."""

    def command(arguments: list[str]) -> None:
        config, values = configured(arguments, "workdir", optional=distributed.FLAGS)
        place = distributed.place_from({name: values[name].value for name in distributed.FLAGS})
        with preemption.handled():
            from privimage_jax.storage.workdir import Workdir

            workdir = Workdir(values.workdir)
            devices.start(workdir.internal / "compilation_cache", place)
            from privimage_jax import pipeline
            from privimage_jax.run.inputs import make_inputs

            pipeline.run(make_inputs(config, workdir), last)
            distributed.stop()

    return command


RUN = Command("run", "everything that is missing, from images to release/", USAGE, up_to(None), looks=True)
STAGE_COMMANDS = tuple(
    Command(stage.name, f"the same, up to and including the stage {stage.name}", USAGE, up_to(stage.name), looks=True)
    for stage in STAGES
)
