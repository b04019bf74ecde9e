"""DP-SGD in your own loop: scikit-learn's digits, a flax model, an optax optimizer."""

import flax.linen as nn
import jax
import optax
from sklearn.datasets import load_digits

from privimage_jax import privacy as dp

N, BATCH, STEPS, DELTA = 1437, 256, 150, 1e-5
digits = load_digits()
x, y = digits.data.astype("float32") / 16, digits.target.astype("int32")
model = nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(10)])
optimizer = optax.adam(5e-3)


def loss(params, batch, keys):
    """One value for each example; `keys` would serve dropout or augmentation."""
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, batch["x"]), batch["y"])


def update(state, gradient):
    updates, moments = optimizer.update(gradient, state["moments"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "moments": moments}


rate = dp.poisson_rate(BATCH, N)
sigma = dp.solve_noise_multiplier(3.0, DELTA, rate, STEPS)
settings = dp.DPSGD(n=N, batch_size=BATCH, clip_norm=1.0, noise_multiplier=sigma, microbatch=BATCH)
step = jax.jit(dp.dp_step(loss, update, settings))
params = model.init(jax.random.key(0), x[:1])
state, key = {"params": params, "moments": optimizer.init(params)}, dp.new_key()
for t in range(STEPS):  # the statistics that come with each step are not private
    state, _ = step(state, {"x": x[:N], "y": y[:N]}, key, jax.random.key(1), t)
accuracy = (model.apply(state["params"], x[N:]).argmax(-1) == y[N:]).mean()
spent = dp.epsilon([dp.SampledGaussian(sigma, rate, STEPS)], DELTA)
print(f"accuracy {accuracy:.1%}, epsilon {spent} at delta {DELTA:g}")
