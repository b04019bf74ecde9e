"""`privimage forecast`: what a config would take on a machine that is not here."""

import os
from pathlib import Path

from privimage_jax.cli import devices
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import CONFIG, check_writable, configured, numbers, positive
from privimage_jax.targets import topologies


def run(arguments: list[str]) -> None:
    """On the CPU, whatever this machine has."""
    counts = ("classes", "public_n", "public_classes")
    config, values = configured(arguments, "target", optional=["methods", "programs", "price", "out", "cache", *counts])
    given = {name: numbers(name, values[name].value, 10**9)[0] if values[name].value else 0 for name in counts}
    methods, names = (tuple(filter(None, (values[name].value or "").split(","))) for name in ("methods", "programs"))
    price, out = None, values.out
    if values.price is not None:
        price = positive("price", values.price, "what a device costs an hour, as in --price=1.2")
    if out is not None:
        check_writable("out", out)
    machine = topologies.parse(values.target)
    os.environ["JAX_PLATFORMS"] = "cpu"  # an accelerator that is here is left alone
    devices.start()
    from privimage_jax.storage.durable import atomic_write_json
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


COMMAND = Command(
    "forecast",
    "plan a job before you rent it: what a config would take on a machine that is not here, as its compiler says",
    f"""
usage: privimage forecast --config FILE --target TARGET [--methods nonprivate,bookkeeping,vmap] [--programs A,B]
                          [--price PER_DEVICE_HOUR] [--out FILE] [--cache FOLDER] [--classes N] [--public_n N]
                          [--public_classes N]

Neither data nor an accelerator is touched. It needs the extra [targets] for TPUs, [cuda] for GPUs.

{CONFIG}
--target      v5e:2x4, v6e:2x2, v5p:2x2x1, … (a TPU slice); h100:8, a100:8, l4, … (GPUs); or FILE:8 (GPUs
              that the file describes)
--programs    some of train-query, query, pretrain, finetune, sample
--classes, --public_n, --public_classes
              numbers that the config does not say
--cache       where estimates are kept, as compiling takes minutes
--out FILE    rows as JSON
""",
    run,
)
