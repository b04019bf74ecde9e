"""`privimage budget`: what a run would spend, before it does."""

from privimage_jax.cli import devices
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import CONFIG, configured
from privimage_jax.errors import UserError


def run(arguments: list[str]) -> None:
    """From the declared number of images alone."""
    config, _ = configured(arguments)
    n = config.data.n
    if not n:
        raise UserError("config.data.n is 0; give the number of sensitive training images, as --config.data.n=60000.")
    devices.start()
    from privimage_jax.run.plan import describe, make_plan

    print(describe(make_plan(config, n), config))


COMMAND = Command(
    "budget",
    "print the privacy plan (noise, sampling rate, steps, epsilon) without touching data",
    f"""
usage: privimage budget --config FILE --config.data.n=N

{CONFIG}
""",
    run,
)
