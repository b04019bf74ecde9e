"""A promise to patients, not to their scans. Generated: a patient is a drawing of a digit, scanned 1 to 30 times."""

import flax.linen as nn
import jax
import numpy as np
import optax

from privimage_jax import privacy as dp
from privimage_jax.data import load

BATCH, STEPS, DELTA, DRAWS = 256, 100, 1e-5, 4
glyphs = {"source": "glyphs", "characters": "0123456789", "per_class": 150, "style": "print"}
patients, others = (load(glyphs, part, 8, 1, cache_dir=None) for part in ("train", "test"))
owners = np.repeat(np.arange(n := patients.n), 1 + np.arange(n) % 30)  # whose each scan is
scans = patients.images[owners].reshape(-1, 64) / 255 + np.random.normal(0, 0.1, (len(owners), 64))
model, optimizer = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)]), optax.adam(5e-3)


def loss(params, batch, keys):
    """One value for each patient: the mean over `DRAWS` of the own scans, "x" [B, DRAWS, 64]."""
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, batch["x"]), batch["y"]).mean(1)


def update(state, gradient):
    updates, moments = optimizer.update(gradient, state["moments"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "moments": moments}


rate = dp.poisson_rate(BATCH, n)  # of patients, not of scans
sigma = dp.solve_noise_multiplier(3.0, DELTA, rate, STEPS)
step = jax.jit(dp.dp_step(loss, update, dp.DPSGD(n, BATCH, 1.0, sigma, microbatch=BATCH)))
data = dp.group({"x": scans.astype("float32"), "y": patients.labels[owners]}, owners, DRAWS)
params, key = model.init(jax.random.key(0), scans[:1]), dp.new_key()
state = {"params": params, "moments": optimizer.init(params)}
for t in range(STEPS):
    state, _ = step(state, data, key, jax.random.key(1), t)
right = model.apply(state["params"], others.images.reshape(-1, 64) / 255).argmax(-1) == others.labels
spent = dp.epsilon([dp.SampledGaussian(sigma, rate, STEPS)], DELTA)
print(f"accuracy {right.mean():.1%}, epsilon {spent} at delta {DELTA:g} for each of {n} patients")
