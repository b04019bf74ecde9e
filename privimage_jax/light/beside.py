"""The forecast for this kind of machine, beside what was measured on it."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from privimage_jax.commands import benchmark
from privimage_jax.errors import UserError
from privimage_jax.light import rows
from privimage_jax.light.rows import Row
from privimage_jax.targets import gpus, topologies

TPU_TARGETS = {  # one device of each, by the names that jax gives them
    "TPU v5 lite": "v5e:1x1",
    "TPU v5e": "v5e:1x1",
    "TPU v5": "v5p:1x1x1",
    "TPU v5p": "v5p:1x1x1",
    "TPU v6 lite": "v6e:1x1",
    "TPU v6e": "v6e:1x1",
}
_METHODS = ("nonprivate", "bookkeeping")


def target(device: str) -> str | None:
    """The name of one such device for `--target`, or None if no description of it is known."""
    named = {gpu.title: f"{name}:1" for name, gpu in gpus.GPUS.items()}
    return {**TPU_TARGETS, **named}.get(device)


def run(config: ConfigDict, device: str, measured: list[Row]) -> Iterator[Row]:
    """Forecasts a setting that was measured, on one device.

    Args:
      config: a checked config.
      device: its kind, as jax names it.
      measured: rows of `nonprivate` and `bookkeeping` in one setting, among others.

    Yields:
      A row for each method: the forecast's, with `measured_seconds` and `measured_ratio`; or a note on what is missing.
    """
    name = target(device)
    if name is None:
        yield rows.note(f"There is no forecast, as no compiler's description of a device {device!r} is known.")
        return
    alone = {row["method"]: row for row in measured if row["kind"] == rows.BENCHMARK and row["devices"] == 1}
    if not {*_METHODS} <= alone.keys():
        yield rows.note("There is no forecast, as nothing was measured that it could be set beside.")
        return
    try:
        for row in _forecast(config, name, alone["bookkeeping"]):
            own = alone[row["method"]]
            yield {
                "kind": rows.FORECAST,
                **row,
                "noise_multiplicity": own["noise_multiplicity"],
                "measured_seconds": own["seconds_median"],
                "measured_ratio": own["ratio_to_nonprivate"],
            }
    except UserError as error:
        yield rows.note(f"There is no forecast: {error}")


def _forecast(config: ConfigDict, name: str, measured: Row) -> list[Row]:
    """The rows of `privimage forecast` for the program of one measured row.

    Raises:
      UserError: the compiler is not installed, or refuses.
    """
    machine = topologies.parse(name)
    topologies.check_installed(machine)
    # Here, as it brings in what no other part needs.
    from privimage_jax.targets import forecast
    from privimage_jax.targets.cache import Cache, default_folder
    from privimage_jax.targets.facts import Facts

    config = config.copy_and_resolve_references()
    config.precision = measured["precision"]
    config.finetune.enabled = True
    config.finetune.batch_size, config.clipping.microbatch = measured["batch_size"], measured["microbatch"]
    config.finetune.noise_multiplicity = measured["noise_multiplicity"]
    n_classes = len(config.data.class_names) or 10
    facts = Facts(benchmark.records_of(config, measured["batch_size"]), n_classes, 1, 1)
    return list(forecast.run(config, machine, facts, Cache(default_folder()), _METHODS, ("finetune",)))
