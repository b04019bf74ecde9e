"""Times Inception features beside the torch twin.

`python tests/support/time_inception.py [IMAGES] [ROUNDS]`

Both take turns in one process, on as many threads as there are processors, with the same random weights and images. On
a shared machine compare processor seconds, on one processor (`taskset -c 0`): threads of PyTorch spin while they wait.
"""

import os

os.environ["XLA_FLAGS"] = " ".join(  # as main.py sets it
    ["--xla_cpu_enable_concurrency_optimized_scheduler=false", os.environ.get("XLA_FLAGS", "")]
)

import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch_inception import twin  # noqa: E402
from weights import random_weights  # noqa: E402

from privimage_jax.metrics.extractors import of_inception  # noqa: E402
from privimage_jax.models.inception import variables_from_torch  # noqa: E402


def main(n=64, rounds=5):
    weights = random_weights()
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
    extractor, torch_network = of_inception(variables_from_torch(weights, "random")), twin(weights)
    contestants = {
        "jax": lambda: extractor.outputs(images, "random").features,
        "torch": lambda: np.concatenate([torch_network(images[i : i + 32])[0] for i in range(0, n, 32)]),
    }
    features = {name: run() for name, run in contestants.items()}
    difference = np.abs(features["jax"] - features["torch"]).max() / np.abs(features["torch"]).max()
    rates, busy = ({name: [] for name in contestants} for _ in range(2))
    for _ in range(rounds):
        for name, run in contestants.items():
            begin, busy_begin = time.perf_counter(), time.process_time()
            run()
            rates[name].append(n / (time.perf_counter() - begin))
            busy[name].append((time.process_time() - busy_begin) / n)
    print(f"largest difference {difference:.1e} of the largest feature; PyTorch has {torch.get_num_threads()} threads")
    for name, values in rates.items():
        spread, seconds = f"from {min(values):.2f} to {max(values):.2f}", statistics.median(busy[name])
        print(f"{name}: {statistics.median(values):.2f} images/s ({spread}), {seconds:.3f} processor seconds an image")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
