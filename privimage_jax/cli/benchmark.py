"""`privimage benchmark`: the speed of the DP-SGD step here."""

import os

from privimage_jax.cli import devices
from privimage_jax.cli.command import Command
from privimage_jax.cli.parsing import (
    CONFIG,
    check_batch_sizes,
    check_writable,
    configured,
    numbers,
    precisions,
    with_defaults,
)
from privimage_jax.errors import UserError


def run(arguments: list[str]) -> None:
    """Rows are written as they come, so that an interruption loses one setting at most."""
    lists = {
        "batch_sizes": "8,64",
        "noise_multiplicities": "1,8",
        "precisions": "float32,bfloat16",
        "repeats": "5",
        "methods": "",
    }
    config, values = configured(arguments, optional=[*lists, "out"])
    given = with_defaults(values, lists)
    batch_sizes, noise_multiplicities = (numbers(name, given[name]) for name in ("batch_sizes", "noise_multiplicities"))
    formats, repeats, out = precisions(given["precisions"]), numbers("repeats", given["repeats"]), values.out
    if len(repeats) > 1:
        raise UserError(f"--repeats={given['repeats']} must be one number.")
    check_batch_sizes(config, batch_sizes)
    if out is not None:
        check_writable("out", out)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs room on the same GPU
    devices.start()
    from privimage_jax.commands.benchmark import measuring
    from privimage_jax.storage.durable import atomic_write_json

    rows = []
    for result in measuring.run(
        config,
        batch_sizes,
        noise_multiplicities,
        formats,
        repeats[0],
        methods=tuple(filter(None, given["methods"].split(","))),
    ):
        measuring.show(result)
        rows += result.rows
        if out is not None:
            atomic_write_json(out, rows)


COMMAND = Command(
    "benchmark",
    "time the DP-SGD step beside others, without data",
    f"""
usage: privimage benchmark --config FILE [--batch_sizes 8,64] [--noise_multiplicities 1,8] [--methods A,B]
                           [--precisions float32,tf32,bfloat16] [--repeats 5] [--out FILE]

{CONFIG}
--methods     some of nonprivate, nonprivate_best, bookkeeping, vmap, sampling, jax_privacy, optax, opacus,
              torch_nonprivate; those of other libraries need the extra [peers]
--out FILE    rows as JSON
""",
    run,
)
