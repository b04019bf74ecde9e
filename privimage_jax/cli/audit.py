"""`privimage audit`: an attack on fine-tuning."""

from privimage_jax.cli import devices
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import CONFIG, configured


def run(arguments: list[str]) -> None:
    """Without data, so that nothing is spent."""
    config, values = configured(arguments, "workdir")
    from privimage_jax.storage.workdir import Workdir

    workdir = Workdir(values.workdir)
    devices.start(workdir.internal / "compilation_cache")
    from privimage_jax.commands import audit

    audit.run(config, workdir)


COMMAND = Command(
    "audit",
    "attack fine-tuning, without data: a lower bound on epsilon (config.audit; needs the extra [audit])",
    f"""
usage: privimage audit --config FILE --workdir FOLDER

{CONFIG}
""",
    run,
    looks=True,
)
