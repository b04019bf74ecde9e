"""Times the measures: `python tests/support/time_fid.py [IMAGES] [SIDE]`.

FID of two sets of random images by the untrained query network of configs/mnist_cpu.py, first from nothing, then with
the features of the real set kept; of at most 10,000 images all other measures too. Prints the peak of memory.
"""

import os

os.environ["XLA_FLAGS"] = "--xla_cpu_enable_concurrency_optimized_scheduler=false"  # as main.py sets it

import resource  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from privimage_jax.configs import mnist_cpu  # noqa: E402
from privimage_jax.data.dataset import Dataset  # noqa: E402
from privimage_jax.metrics import extractors, fidelity, real_features  # noqa: E402
from privimage_jax.metrics.fid import frechet_distance, mean_and_covariance  # noqa: E402
from privimage_jax.models import registry  # noqa: E402


def random_set(n, side, seed):
    images = np.random.default_rng(seed).integers(0, 256, (n, side, side, 1), np.uint8)
    return Dataset(images, np.zeros(n, np.int32), ("all",), "random")


def main(n=60000, side=28):
    query = mnist_cpu.get_config().query_net
    model = registry.build_classifier(query.model, 200, **query.kwargs)
    network = extractors.of_network(model, registry.init_classifier(model, jax.random.key(0), (side, side, 1)))
    real, synthetic = random_set(n, side, 0), random_set(n, side, 1)
    real.digest()
    with tempfile.TemporaryDirectory() as folder:
        for attempt in ("from nothing", "features of the real set kept"):
            begin, busy = time.perf_counter(), time.process_time()
            kept = real_features.load_or_make(Path(folder), network, real, n)
            read = time.perf_counter()
            made = network.outputs(synthetic.images, "synthetic")
            value = frechet_distance(kept.mean, kept.covariance, *mean_and_covariance(made.features))
            end = time.perf_counter()
            seconds = f"{end - begin:.1f} s, {time.process_time() - busy:.1f} processor seconds"
            print(f"FID {value:.4g} of {n:,} images, {attempt}: {seconds}; {read - begin:.1f} s of it real")
    if n <= 10000:
        begin = time.perf_counter()
        print(fidelity.measure(kept.features, kept, made, 4, "query"))
        print(f"all measures from features: {time.perf_counter() - begin:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
