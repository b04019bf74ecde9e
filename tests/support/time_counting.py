"""Times the counting pass: `python tests/support/time_counting.py [CLASSIFIER] [ROUNDS] [IMAGES]`.

One batch of random images through an untrained classifier, in turns: given one image at a time, as the mechanisms count
(`features.forward`), and given the batch. Prints the ratios of the medians, by the clock and by processor seconds.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_enable_concurrency_optimized_scheduler=false"  # as main.py sets it

import sys  # noqa: E402
import time  # noqa: E402
from functools import partial  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from privimage_jax.metrics.features import extract, forward  # noqa: E402
from privimage_jax.models import registry  # noqa: E402

SHAPE = (32, 32, 3)


def main(name="resnet18", rounds=12, n=512):
    model = registry.build_classifier(name, 200)
    variables = registry.init_classifier(model, jax.random.key(0), SHAPE)
    images = np.random.default_rng(0).integers(0, 256, (n, *SHAPE), np.uint8)
    ways = {
        "batch": jax.tree_util.Partial(partial(model.apply, train=False), variables),
        "one at a time": forward(model, variables, method="__call__"),
    }
    logits = {way: extract(apply, images) for way, apply in ways.items()}
    print("equal logits:", np.mean(logits["batch"] == logits["one at a time"]))
    spent = {way: [] for way in ways}
    for turn in range(rounds):
        for way in list(ways)[:: (-1) ** turn]:
            clock, busy = time.perf_counter(), time.process_time()
            extract(ways[way], images)
            spent[way].append((time.perf_counter() - clock, time.process_time() - busy))
    medians = {way: np.median(seconds, axis=0) for way, seconds in spent.items()}
    for unit, ratio in zip(("clock", "processor"), medians["one at a time"] / medians["batch"], strict=True):
        print(f"{name}, {n} images, {unit}: {ratio:.3f} times as long, one at a time")


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:]))
