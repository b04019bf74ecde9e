"""The command line: `privimage COMMAND --config FILE --workdir FOLDER [--config.section.key=value …]`.

The configuration is checked before anything heavy is imported, so that a wrong value stops the program in its first
second.
"""

import os
import sys
from collections.abc import Callable

from absl import flags
from ml_collections import config_flags

from privimage_jax import config as configs
from privimage_jax.errors import UserError

USAGE = """usage: privimage COMMAND --config FILE --workdir FOLDER [--config.section.key=value ...]

  run          everything that is missing, from images to release/
  train-query | query | select | pretrain | finetune | sample | evaluate | report
               the same, up to and including that stage
  budget       print the privacy plan (noise, sampling rate, steps, epsilon) without touching data
  ledger       print what a workdir has spent and check its hash chain (--workdir only)
  prepare      download a TFDS set: privimage prepare NAME [--data_dir FOLDER] (needs the extra [prepare])

Example: privimage run --config configs/quickstart.py --workdir runs/quickstart --config.privacy.epsilon=5
Every setting is in configs/base.py."""

STAGE_COMMANDS = ("train-query", "query", "select", "pretrain", "finetune", "sample", "evaluate", "report")

XLA_FLAGS = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",  # halves the memory and the spread of times on CPUs
    "--xla_gpu_deterministic_ops=true",  # a replayed DP-SGD step must be bit-identical
)


def entry_point() -> None:
    """The console script: runs a command and exits with its status."""
    sys.exit(main(sys.argv))


def main(argv: list[str]) -> int:
    """Runs one command.

    Returns:
      0 when it is done, 2 for a mistake that the user can mend (one sentence on standard error), 130 when interrupted.
    """
    try:
        command, arguments = _command(argv)
        if command == "help":
            print(USAGE)
            return 0
        COMMANDS[command](arguments)
    except UserError as error:
        print(f"privimage: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("privimage: interrupted; the same command continues where it stopped.", file=sys.stderr)
        return 130
    return 0


def _command(argv: list[str]) -> tuple[str, list[str]]:
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        return "help", []
    command = argv[1]
    if command not in COMMANDS:
        raise UserError(f"{command!r} is not a command; give one of {', '.join(COMMANDS)} (see privimage --help).")
    return command, argv[2:]


def _parse(arguments: list[str], *required: str, positional: int = 0) -> tuple[flags.FlagValues, list[str]]:
    """Parses flags into a fresh set, so that `main` can be called more than once in a process."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "The experiment's config file.", flag_values=values)
    flags.DEFINE_string("workdir", None, "The run's folder.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "TFDS's folder of prepared sets.", flag_values=values)
    path = _config_path(arguments)
    try:
        rest = values(["privimage", *arguments])[1:]
    except flags.Error as error:
        raise UserError(f"{_one_line(error)}; every setting and its type is in configs/base.py.") from None
    except UserError:
        raise
    except Exception as error:  # a config file is a program and may fail in any way
        raise UserError(
            f"the config file {path} does not fit: {type(error).__name__}: {_one_line(error)}; "
            "see configs/quickstart.py for an example and configs/base.py for every setting."
        ) from None
    for name in required:
        if values[name].value is None:
            raise UserError(f"--{name} is missing; see privimage --help.")
    if len(rest) != positional:
        raise UserError(f"unexpected arguments {rest}; settings are given as --config.section.key=value.")
    return values, rest


def _config_path(arguments: list[str]) -> str | None:
    """The config file's path, if given; also checks the names of all overridden settings, before the flags are
    parsed.
    """
    path = None
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if name == "config":
            path = value if equals else following
        elif name.startswith("config."):
            configs.check_key(name.removeprefix("config."))
    if path is not None and not os.path.isfile(path.split(":")[0]):
        raise UserError(
            f"the config file {path} does not exist; give the path of a .py file such as configs/quickstart.py."
        )
    return path


def _one_line(error: Exception) -> str:
    return " ".join(str(error.args[0] if error.args else error).split()).rstrip(".")


def _configured(arguments: list[str], *required: str):
    values, _ = _parse(arguments, "config", *required)
    return configs.check(values.config), values


def _set_up_jax(cache_dir=None) -> None:
    """What must happen before jax starts; a user's own XLA_FLAGS come last and win."""
    os.environ["XLA_FLAGS"] = " ".join([*XLA_FLAGS, os.environ.get("XLA_FLAGS", "")])
    os.environ.setdefault("MPLBACKEND", "Agg")
    import jax

    if cache_dir is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))


def _run(last: str | None) -> Callable[[list[str]], None]:
    def command(arguments: list[str]) -> None:
        config, values = _configured(arguments, "workdir")
        from privimage_jax.workdir import Workdir

        workdir = Workdir(values.workdir)
        _set_up_jax(workdir.internal / "compilation_cache")
        from privimage_jax import pipeline
        from privimage_jax.stages.context import Context

        pipeline.run(Context(config, workdir), last)

    return command


def _budget(arguments: list[str]) -> None:
    config, _ = _configured(arguments)
    n = config.data.n
    if not n:
        raise UserError("config.data.n is 0; give the number of sensitive training images, as --config.data.n=60000.")
    _set_up_jax()
    from privimage_jax.stages.plan import describe, make_plan

    print(describe(make_plan(config, n)))


def _ledger(arguments: list[str]) -> None:
    values, _ = _parse(arguments, "workdir")
    from privimage_jax.privacy.ledger import Ledger
    from privimage_jax.workdir import Workdir

    path = Workdir(values.workdir).ledger
    if not path.exists():
        raise UserError(f"{path} does not exist: this workdir has spent nothing.")
    for line in Ledger.open(path).entries:
        fields = {key: value for key, value in line.items() if key not in ("index", "kind", "previous")}
        print(f"{line['index']:>3}  {line['kind']:<9}" + "  ".join(f"{key}={value}" for key, value in fields.items()))
    print("the hash chain is intact")


def _prepare(arguments: list[str]) -> None:
    values, names = _parse(arguments, positional=1)
    from privimage_jax.data.prepare import prepare

    prepare(names[0], values.data_dir or "")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "run": _run(None),
    **{name: _run(name.replace("-", "_")) for name in STAGE_COMMANDS},
    "budget": _budget,
    "ledger": _ledger,
    "prepare": _prepare,
}

if __name__ == "__main__":
    entry_point()
