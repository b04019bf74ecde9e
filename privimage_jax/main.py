"""The command line: `privimage COMMAND --config FILE --workdir FOLDER [--config.section.key=value …]`.

The configuration is checked before anything heavy is imported, so that a wrong value stops the program in its first
second.
"""

import contextlib
import errno
import logging
import math
import os
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from privimage_jax import config as configs
from privimage_jax.cluster import distributed, preemption, processes
from privimage_jax.commands import combinations
from privimage_jax.errors import UserError, printable
from privimage_jax.run.stage import STAGES
from privimage_jax.targets import topologies

USAGE = f"""usage: privimage COMMAND --config FILE --workdir FOLDER [--config.section.key=value ...]

  run          everything that is missing, from images to release/
  {" | ".join(stage.name for stage in STAGES)}
               the same, up to and including that stage
  budget       print the privacy plan (noise, sampling rate, steps, epsilon) without touching data
  report       with PATHs in place of --config: finished workdirs side by side, in one page that is not private:
               privimage report W1 W2 ... [--out comparison.html]
  ledger       print what runs have spent and check the hash chains: privimage ledger PATH [PATH ...] [--verify],
               where a PATH is a workdir, a folder release/ or a ledger file; --verify recomputes every epsilon;
               several are added up
  export       write the synthetic set of a finished run in other formats, with a datasheet: privimage export
               --workdir FOLDER --format npz|png|zip|tfds[,...] --out PATH
  prepare      download a TFDS set: privimage prepare NAME [--data_dir FOLDER] (needs the extra [prepare])
  benchmark    time the DP-SGD step beside others, without data: privimage benchmark --config FILE
               [--batch_sizes 8,64] [--noise_multiplicities 1,8] [--precisions float32,tf32,bfloat16]
               [--methods A,B] [--repeats 5] [--out FILE]
  forecast     plan a job before you rent it: what a config would take on a machine that is not here, as its compiler
               says, without data or accelerator: privimage forecast --config FILE --target v5e:2x4 (or h100:8, …)
               [--methods nonprivate,bookkeeping,vmap] [--programs A,B] [--price PER_DEVICE_HOUR] [--out FILE]
               [--cache FOLDER] [--classes N] [--public_n N] [--public_classes N] (extra [targets] or [cuda])
  first-light  does this machine compute what it should, and how fast? Checks, then the benchmark, then the forecast
               beside it, without data: privimage first-light --config FILE --out FOLDER [--minutes 8]
               [--batch_sizes 64,512,4096] [--noise_multiplicities 1,8,32] [--precisions float32,tf32,bfloat16]
               [--repeats 3] [--part NAME]; the same command goes on where it stopped
  audit        attack fine-tuning, without data: a lower bound on epsilon (config.audit; needs the extra [audit])
  sweep        the run for each combination of settings: privimage sweep --config FILE --workdir FOLDER
               --over section.key=A,B [--over …] [--zip] [--measure fid] [--correlate]

Example: privimage run --config configs/quickstart.py --workdir runs/quickstart --config.privacy.epsilon=5
Every setting is in configs/base.py.

Several processes, one command each: add --coordinator=HOST:PORT --num_processes=N --process_id=I (or the variables
PRIVIMAGE_COORDINATOR, PRIVIMAGE_NUM_PROCESSES, PRIVIMAGE_PROCESS_ID), or --coordinator=auto inside SLURM, GKE or a TPU
pod; --start_timeout=SECONDS for how long they wait for each other. launch/ has scripts that do so."""

XLA_FLAGS = (
    "--xla_cpu_enable_concurrency_optimized_scheduler=false",  # halves the memory and the spread of times on CPUs
    "--xla_gpu_exclude_nondeterministic_ops=true",  # a replayed DP-SGD step must be bit-identical, see docs/recovery.md
)

PRECISIONS = ("float32", "tf32", "bfloat16")  # of `clipping.PRECISIONS`, whose module imports jax
INTERRUPTED = 130  # as shells report SIGINT
GRACE_SECONDS = 3.0  # for the news that another process has failed


def entry_point() -> None:
    """The console script: runs a command and exits with its status."""
    sys.unraisablehook = report_unraisable
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # likewise of tasks that fail beside the first
    status = main(sys.argv)
    if status in (preemption.STATUS, INTERRUPTED):  # devices may still be computing, and jax's own end then crashes
        _flush()
        os._exit(status)
    sys.exit(status)


def main(argv: list[str]) -> int:
    """Runs one command.

    Returns:
      0 when it is done, 2 for a mistake that the user can mend (one sentence on standard error), 75 after SIGTERM
      (for a scheduler: start the same command again), 130 when interrupted.
    """
    absl_logging.set_verbosity(absl_logging.FATAL)  # of libraries; what they raise is told in one sentence
    try:
        command, arguments = _command(argv)
        if command == "help":
            print(USAGE)
        else:
            COMMANDS[command](arguments)
        sys.stdout.flush()
    except UserError as error:
        print(f"privimage: error: {printable(str(error))}", file=sys.stderr)
        return _ended(2, str(error))
    except OSError as error:  # what is not about a file of the run, such as a closed or full standard output
        culprit = "" if error.filename is None else f" ({error.filename})"
        sentence = f"the system refuses: {error.strerror or error}{culprit}; mend that and run the same command again."
        print(f"privimage: error: {printable(sentence)}", file=sys.stderr)
        if error.filename is None and sys.__stdout__ is not None:  # nothing is to be flushed in vain at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return _ended(2, sentence)
    except preemption.Preempted:
        sentence = "ended by SIGTERM; its work is saved, and the same command continues where it stopped."
        print(f"privimage: {sentence}", file=sys.stderr)
        return _ended(preemption.STATUS, sentence)
    except KeyboardInterrupt:
        sentence = "interrupted; the same command continues where it stopped."
        print(f"privimage: {sentence}", file=sys.stderr)
        return _ended(INTERRUPTED, sentence)
    except Exception as error:
        if processes.current().count == 1:
            raise
        time.sleep(GRACE_SECONDS)  # what fails here because another process has gone ends meanwhile, with a sentence
        traceback.print_exc()
        return _ended(1, f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (a bug, or out of memory).")
    return 0


def _ended(status: int, sentence: str) -> int:
    """The exit status of a process that fails; one of several ends at once, as jax would wait for the others."""
    team = processes.current()
    if team.count > 1:
        team.fail(sentence, status)
        _flush()
        os._exit(status)
    return status


def _flush() -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()


def report_unraisable(unraisable: Any) -> None:
    """For `sys.unraisablehook`: keeps other threads silent.

    When a write fails, tensorstore's threads go on to call an event loop that orbax has closed; the main thread says
    what went wrong, and they need not.
    """
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def _command(argv: list[str]) -> tuple[str, list[str]]:
    if len(argv) < 2:
        raise UserError(f"a command is missing; give one of {', '.join(COMMANDS)} (see privimage --help).")
    if argv[1] == "help" or {"-h", "--help"} & set(argv):
        return "help", []
    command = argv[1]
    if command not in COMMANDS:
        raise UserError(f"{command!r} is not a command; give one of {', '.join(COMMANDS)} (see privimage --help).")
    return command, argv[2:]


def _parse(
    arguments: list[str],
    *required: str,
    optional: Iterable[str] = (),
    switches: Iterable[str] = (),
    repeated: Iterable[str] = (),
    positional: str = "",
    most: int = 1,
) -> tuple[flags.FlagValues, list[str]]:
    """Parses flags into a fresh set, so that `main` can be called more than once in a process.

    A command takes the flags that it requires, the optional ones and the switches (flags without a value), no other; a
    `repeated` one may be given several times and is a list. `positional` describes the arguments that are no flags,
    from one to `most`, where it takes any.
    """
    path, arguments = _take_config(arguments)
    if path is not None and "config" not in required:
        raise UserError("this command takes no --config; see privimage --help.")
    values = flags.FlagValues()
    for name in {*required, *optional} - {"config", *repeated}:
        flags.DEFINE_string(name, None, "A folder or a number.", flag_values=values)
    for name in repeated:
        flags.DEFINE_multi_string(name, None, "Any number of these.", flag_values=values)
    for name in switches:
        flags.DEFINE_boolean(name, False, "Whether to.", flag_values=values)
    argv = ["privimage", *arguments]
    try:
        if path is not None:
            config_flags.DEFINE_config_dict(
                "config",
                configs.load(path),
                lock_config=False,  # it is already, but for the arguments of models,
                accept_new_attributes=True,  # which may be new; all other names have been checked
                flag_values=values,
                sys_argv=argv,
            )
        rest = values(argv)[1:]
    except KeyError as error:  # of ConfigDict
        text = " ".join(str(error.args[0]).split()).rstrip(".")
        raise UserError(f"a setting lies in a section that is not there ({text}); add it in the config file.") from None
    except flags.Error as error:
        text = " ".join(str(error).split()).rstrip(".")
        where = "every setting and its type is in configs/base.py" if "config." in text else "see privimage --help"
        raise UserError(f"{text[:1].lower()}{text[1:]}; {where}.") from None
    for name in required:
        if name not in values or not values[name].value:
            raise UserError(f"--{name} is missing; see privimage --help.")
    if positional and not 1 <= len(rest) <= most:
        raise UserError(f"give {positional}, not {' '.join(rest) or 'nothing'}; see privimage --help.")
    if rest and not positional:
        raise UserError(f"unexpected argument {rest[0]!r}; settings are given as --config.section.key=value.")
    return values, rest


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Parts the config file's path from the other arguments, and checks the names of all overridden settings."""
    path, rest, following = None, [], iter(arguments)
    for argument in following:
        name, equals, value = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or name.split(".")[0] != "config":
            rest.append(argument)
        elif name == "config":
            path = value if equals else next(following, "")
        else:
            configs.check_key(name.removeprefix("config."))
            rest.append(argument)
    return path, rest


def _configured(arguments: list[str], *required: str, **accepted: Any) -> tuple[ConfigDict, Any]:
    values, _ = _parse(arguments, "config", *required, **accepted)
    return configs.check(values.config), values


def _set_up_jax(cache_dir: Path | None = None, place: distributed.Place | None = None) -> None:
    """What must happen before jax starts; a user's own XLA_FLAGS come last and win.

    Compiled programs are kept in `cache_dir`. On a GPU that is also how a replay gets the same kernels: XLA chooses
    them by measuring, so that another compilation may choose others.
    """
    os.environ["XLA_FLAGS"] = " ".join([*XLA_FLAGS, os.environ.get("XLA_FLAGS", "")])
    os.environ.setdefault("MPLBACKEND", "Agg")
    topologies.quieten_libtpu()
    if place is not None:
        distributed.start(place)
    import jax

    if cache_dir is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))
        jax.config.update("jax_persistent_cache_enable_xla_caches", "xla_gpu_per_fusion_autotune_cache_dir")
    warnings.filterwarnings("ignore", message=".*persistent compilation cache")  # it only saves time
    warnings.filterwarnings("ignore", module="PIL")  # of damaged tags in pictures that can be read all the same
    try:
        jax.devices()
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"jax finds no device ({reason}); correct JAX_PLATFORMS or the installation.") from None
    if jax.default_backend() == "gpu":
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # no program is too small to be kept


def _run(last: str | None) -> Callable[[list[str]], None]:
    def command(arguments: list[str]) -> None:
        config, values = _configured(arguments, "workdir", optional=distributed.FLAGS)
        place = distributed.place_from({name: values[name].value for name in distributed.FLAGS})
        with preemption.handled():
            from privimage_jax.storage.workdir import Workdir

            workdir = Workdir(values.workdir)
            _set_up_jax(workdir.internal / "compilation_cache", place)
            from privimage_jax import pipeline
            from privimage_jax.run.inputs import make_inputs

            pipeline.run(make_inputs(config, workdir), last)
            distributed.stop()

    return command


def _budget(arguments: list[str]) -> None:
    config, _ = _configured(arguments)
    n = config.data.n
    if not n:
        raise UserError("config.data.n is 0; give the number of sensitive training images, as --config.data.n=60000.")
    _set_up_jax()
    from privimage_jax.run.plan import describe, make_plan

    print(describe(make_plan(config, n), config))


def _ledger(arguments: list[str]) -> None:
    values, paths = _parse(
        arguments,
        switches=["verify"],
        positional="the PATH of one or more workdirs, folders release/ or ledger files",
        most=1000,
    )
    from privimage_jax.commands import ledger

    ledger.show(paths, values.verify)


def _report(arguments: list[str]) -> None:
    """The stage for one run; without its flags, finished runs side by side."""
    named = {argument.lstrip("-").partition("=")[0].split(".")[0] for argument in arguments if argument.startswith("-")}
    if named & {"config", "workdir"} or not arguments:
        _run("report")(arguments)
        return
    values, paths = _parse(
        arguments, optional=["out"], positional="the PATH of one or more finished workdirs", most=100
    )
    from privimage_jax.commands import compare

    out = os.path.abspath(os.path.expanduser(compare.DEFAULT if values.out is None else values.out))
    _check_writable("out", out)
    compare.write(paths, Path(out))


def _export(arguments: list[str]) -> None:
    values, _ = _parse(arguments, "workdir", "format", "out")
    out = os.path.abspath(os.path.expanduser(values.out))
    if os.path.lexists(out):
        raise UserError(f"--out={values.out} exists, and nothing is written over; remove it or give another path.")
    _check_writable("out", out)
    from privimage_jax.commands import export
    from privimage_jax.storage.workdir import Workdir

    export.run(Workdir(values.workdir), list(dict.fromkeys(values.format.split(","))), Path(out))


def _prepare(arguments: list[str]) -> None:
    values, names = _parse(arguments, optional=["data_dir"], positional="the NAME of one TFDS set")
    from privimage_jax.data.prepare import prepare

    print(f"prepared {prepare(names[0], values.data_dir or '')}")


def _benchmark(arguments: list[str]) -> None:
    lists = {
        "batch_sizes": "8,64",
        "noise_multiplicities": "1,8",
        "precisions": "float32,bfloat16",
        "repeats": "5",
        "methods": "",
    }
    config, values = _configured(arguments, optional=[*lists, "out"])
    given = {name: default if values[name].value is None else values[name].value for name, default in lists.items()}
    batch_sizes, noise_multiplicities = (
        _numbers(name, given[name]) for name in ("batch_sizes", "noise_multiplicities")
    )
    precisions, repeats, out = _precisions(given["precisions"]), _numbers("repeats", given["repeats"]), values.out
    if len(repeats) > 1:
        raise UserError(f"--repeats={given['repeats']} must be one number.")
    _check_batch_sizes(config, batch_sizes)
    if out is not None:
        _check_writable("out", out)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room on the same GPU
    _set_up_jax()
    from privimage_jax.commands import benchmark
    from privimage_jax.storage.workdir import atomic_write_json

    rows = []
    for result in benchmark.run(
        config,
        batch_sizes,
        noise_multiplicities,
        precisions,
        repeats[0],
        methods=tuple(filter(None, given["methods"].split(","))),
    ):
        benchmark.show(result)
        rows += result.rows
        if out is not None:
            atomic_write_json(out, rows)


def _forecast(arguments: list[str]) -> None:
    counts = ("classes", "public_n", "public_classes")
    config, values = _configured(
        arguments, "target", optional=["methods", "programs", "price", "out", "cache", *counts]
    )
    given = {name: _numbers(name, values[name].value, 10**9)[0] if values[name].value else 0 for name in counts}
    methods, names = (tuple(filter(None, (values[name].value or "").split(","))) for name in ("methods", "programs"))
    price, out = None, values.out
    if values.price is not None:
        price = _positive("price", values.price, "what a device costs an hour, as in --price=1.2")
    if out is not None:
        _check_writable("out", out)
    machine = topologies.parse(values.target)
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator that is here is left alone
    _set_up_jax()
    from privimage_jax.storage.workdir import atomic_write_json
    from privimage_jax.targets import facts, forecast, programs
    from privimage_jax.targets.cache import Cache, default_folder

    known = facts.gather(config, given["classes"], given["public_n"], given["public_classes"])
    cache = Cache(Path(values.cache).expanduser() if values.cache else default_folder())
    rows = []
    for row in forecast.run(config, machine, known, cache, methods, names):
        rows.append(row)
        if out is not None:
            atomic_write_json(out, rows)
    forecast.show(rows, programs.own_method(config), price)
    forecast.check_fits(rows)


def _first_light(arguments: list[str]) -> None:
    lists = {
        "batch_sizes": "64,512,4096",
        "noise_multiplicities": "1,8,32",
        "precisions": ",".join(PRECISIONS),
        "repeats": "3",
    }
    config, values = _configured(arguments, "out", optional=[*lists, "minutes", "part"])
    given = {name: default if values[name].value is None else values[name].value for name, default in lists.items()}
    numbers = {name: _numbers(name, given[name]) for name in lists if name != "precisions"}
    minutes = _positive("minutes", values.minutes or "8", "how long it may take, as in --minutes=8")
    _check_batch_sizes(config, numbers["batch_sizes"])
    out = Path(values.out).expanduser().absolute()
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"--out={values.out} is no folder; give the path of one.")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room on the same GPU
    if values.part:
        _set_up_jax(out / "compilation_cache")
    # Without a part, the devices are left to the processes that are started.
    from privimage_jax.light import driver
    from privimage_jax.light.parts import Settings

    settings = Settings(
        numbers["batch_sizes"],
        numbers["noise_multiplicities"],
        _precisions(given["precisions"]),
        numbers["repeats"][0],
    )
    if values.part:
        driver.run_part(config, settings, out, values.part)
    else:
        driver.run(config, settings, out, minutes, driver.in_child(arguments))


def _positive(name: str, text: str, advice: str) -> float:
    """The number above 0 of a flag; `advice` says what to give."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < math.inf:
        raise UserError(f"--{name}={text} is not accepted; give {advice}.")
    return value


def _audit(arguments: list[str]) -> None:
    config, values = _configured(arguments, "workdir")
    from privimage_jax.storage.workdir import Workdir

    workdir = Workdir(values.workdir)
    _set_up_jax(workdir.internal / "compilation_cache")
    from privimage_jax.commands import audit

    audit.run(config, workdir)


def _sweep(arguments: list[str]) -> None:
    required = ("workdir", "over")
    accepted: dict[str, Any] = {"optional": ["measure"], "repeated": ["over"], "switches": ["zip", "correlate"]}
    given, _ = _parse(arguments, "config", *required, **accepted)
    fields = combinations.parse(given.over)
    experiments = []
    for texts in combinations.combine(fields, given.zip):
        overrides = [f"--config.{key}={text}" for key, text in texts.items()]
        experiments.append(_configured([*arguments, *overrides], *required, **accepted)[0])
    runs = combinations.name_runs(experiments, list(fields))
    with preemption.handled():
        from privimage_jax.storage.workdir import Workdir

        workdir = Workdir(given.workdir)
        _set_up_jax(workdir.internal / "compilation_cache")
        from privimage_jax.commands import sweep

        sweep.run(runs, workdir, given.measure or "", given.correlate)


def _precisions(text: str) -> list[str]:
    """The number formats of `--precisions`."""
    names = list(dict.fromkeys(text.split(",")))
    if wrong := [name for name in names if name not in PRECISIONS]:
        raise UserError(
            f"--precisions: {wrong[0]!r} is not known; give some of {', '.join(PRECISIONS)}, separated by commas."
        )
    return names


def _numbers(name: str, text: str, most: int = 10**6) -> list[int]:
    """The whole numbers from 1 to `most` of a flag, such as "8,64"."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and len(part) < 11 and 1 <= int(part) <= most for part in parts):
        raise UserError(f"--{name}={text} is not accepted; give whole numbers from 1 to {most}, as in --{name}=8,64.")
    return list(dict.fromkeys(map(int, parts)))


def _check_batch_sizes(config: ConfigDict, batch_sizes: list[int]) -> None:
    """Refuses batches of more records than the config declares."""
    if config.data.n and max(batch_sizes) > config.data.n:
        raise UserError(
            f"--batch_sizes: {max(batch_sizes)} is more than config.data.n={config.data.n}; give at most that."
        )


def _check_writable(name: str, path: str) -> None:
    """Refuses a file that could not be written when the work is done."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--{name}={path} cannot be written ({error.strerror}); give a path in a writable folder that exists."
        ) from None


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "run": _run(None),
    **{stage.name: _run(stage.name) for stage in STAGES},
    "report": _report,
    "budget": _budget,
    "ledger": _ledger,
    "export": _export,
    "prepare": _prepare,
    "benchmark": _benchmark,
    "forecast": _forecast,
    "first-light": _first_light,
    "audit": _audit,
    "sweep": _sweep,
}

if __name__ == "__main__":
    entry_point()
