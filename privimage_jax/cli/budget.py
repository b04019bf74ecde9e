"""`privimage budget`: what a run would spend, before it does."""

from privimage_jax.cli import devices
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import CONFIG, configured
from privimage_jax.settings import derived


def run(arguments: list[str]) -> None:
    """From the declared number of images or people alone."""
    config, _ = configured(arguments)
    n = derived.declared_n(config)
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
