"""Times the private step with its compensated sum and with a plain one: `python tests/support/time_sum.py [ROUNDS]`.

The quickstart's network, one device, in turns; a batch size and a microbatch may follow. Prints the ratios of the
medians, by the clock and by processor seconds.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_enable_concurrency_optimized_scheduler=false"  # as main.py sets it

import sys  # noqa: E402
import time  # noqa: E402
from unittest import mock  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from privimage_jax.commands.benchmark import problems, programs  # noqa: E402
from privimage_jax.configs import quickstart  # noqa: E402
from privimage_jax.privacy import chacha, summation  # noqa: E402
from privimage_jax.training.mesh import make_mesh, place, replicated  # noqa: E402

N = 1437
PLAIN = {
    "rows": lambda tree: (jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), tree), None),
    "add": lambda pair, term, _=None: (jax.tree.map(jnp.add, pair[0], term), pair[1]),
    "joined": lambda parts: parts,
}


def main(rounds=12, batch_size=128, microbatch=32):
    config = quickstart.get_config()
    config.clipping.microbatch = microbatch
    problem = problems.make_problem(config, batch_size, config.finetune.noise_multiplicity, "float32")
    data = place(problems.random_data(problem, N), replicated(make_mesh(jax.devices()[:1])))
    key = chacha.key_from_seed("time")

    def step():
        return programs.own_step(problem, "bookkeeping", data, N, 1, key)

    steps = {"compensated": step()}
    with mock.patch.multiple(summation, **PLAIN):
        steps["plain"] = step()
    for name, entry in steps.items():
        print(f"{name}: compiled in {entry.compile_seconds:.1f} s, {entry.peak_bytes() / 2**20:.1f} MiB")
    spent = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name in list(steps)[:: (-1) ** turn]:
            clock, busy = time.perf_counter(), time.process_time()
            steps[name].run(turn)
            if turn:  # the first is a warm-up
                spent[name].append((time.perf_counter() - clock, time.process_time() - busy))
    medians = {name: np.median(seconds, axis=0) for name, seconds in spent.items()}
    for unit, ratio, plain in zip(
        ("clock", "processor"), medians["compensated"] / medians["plain"], medians["plain"], strict=True
    ):
        print(f"{unit}: {ratio:.3f} times as long as the plain sum's {plain:.2f} s")
    pairs = np.array(spent["compensated"]) / np.array(spent["plain"])
    print("medians of the ratios of neighbours:", np.round(np.median(pairs, axis=0), 3))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
