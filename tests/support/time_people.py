"""Measures a step of fine-tuning whose records are people beside one whose records are images, in turns.

`python tests/support/time_people.py [ROUNDS] [DRAWS]`: the network of configs/quickstart.py with one level, 128
records, an expected batch of 32, on one device. Half of the people have 1 image, the others up to 60. It counts seconds
of processors, of all threads together, which others' work on the machine changes little. The median of the ratios of
neighbouring pairs is what counts.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_enable_concurrency_optimized_scheduler=false")  # as main.py sets it

import statistics  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402

from configs.quickstart import get_config  # noqa: E402
from privimage_jax import generators  # noqa: E402
from privimage_jax.data.dataset import Dataset  # noqa: E402
from privimage_jax.generators.base import draws_of  # noqa: E402
from privimage_jax.privacy import chacha  # noqa: E402
from privimage_jax.stages import finetune  # noqa: E402
from privimage_jax.training import residency  # noqa: E402
from privimage_jax.training.mesh import make_mesh  # noqa: E402

ROUNDS, DRAWS = (int(value) for value in (sys.argv[1:] + ["20", "4"][len(sys.argv) - 1 :]))
RECORDS, BATCH, STEPS = 128, 32, 2  # steps between two looks at the clock

config = get_config()
config.finetune.batch_size, config.finetune.noise_multiplicity = BATCH, DRAWS
config.precision, config.model.kwargs.ch_mult = "float32", (2,)
mesh, rng = make_mesh(jax.devices()[:1]), np.random.default_rng(0)
generator = generators.build(config, 10)
images_of = np.where(np.arange(RECORDS) % 2, rng.integers(2, 61, RECORDS), 1)


def dataset(owners: np.ndarray, unit: str) -> Dataset:
    images = rng.integers(0, 256, (len(owners), 8, 8, 1), np.uint8)
    labels = np.arange(len(owners), dtype=np.int32) % 10
    return Dataset(images, labels, tuple("0123456789"), unit, owners.astype(np.int32), unit=unit)


sets = {
    "image": dataset(np.arange(RECORDS), "image"),
    "person": dataset(np.repeat(np.arange(RECORDS), images_of), "person"),
}
step = jax.jit(finetune.make_step(generator, mesh, finetune.dp_settings(config, RECORDS, 1.0, 16)))
state = generator.private_state(generator.init(jax.random.key(0)), jax.random.key(1))
keys = {"key": chacha.key_from_seed("time"), "loss_key": jax.random.key(2)}
data = {name: residency.place_records(each, draws_of(generator), mesh, "auto") for name, each in sets.items()}


def seconds(name: str, first: int) -> float:
    begin = time.process_time()
    for t in range(first, first + STEPS):
        jax.block_until_ready(step(state, {"data": data[name], **keys}, np.int32(t)))
    return time.process_time() - begin


for name in data:  # compiles
    seconds(name, 0)
ratios, totals = [], dict.fromkeys(data, 0.0)
for number in range(ROUNDS):
    order = list(data) if number % 2 else list(data)[::-1]
    taken = {name: seconds(name, STEPS * number) for name in order}  # the same members in both
    ratios.append(taken["person"] / taken["image"])
    totals = {name: totals[name] + taken[name] for name in data}
    print(f"{number + 1}: person / image = {ratios[-1]:.3f}", flush=True)
per_step = {name: total / ROUNDS / STEPS for name, total in totals.items()}
print(
    f"a step of {BATCH} images takes {per_step['image']:.3f} s of processors, of {BATCH} people with "
    f"{len(sets['person'].labels):,} images {per_step['person']:.3f} s; ratio {statistics.median(ratios):.3f} "
    f"(half of the rounds between {np.quantile(ratios, 0.25):.3f} and {np.quantile(ratios, 0.75):.3f})"
)
