"""Diffusion in the EDM formulation (Karras et al. 2022, arXiv:2206.00364): preconditioning, loss and samplers.

Numbers in brackets are that paper's equations. Images are float32 in [-1, 1]; sigma is the standard deviation of the
added noise in these units. Everything outside the network is float32, whatever its compute type.
"""

import dataclasses
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from privimage_jax.data.augment import augment
from privimage_jax.data.pixels import to_float
from privimage_jax.errors import UserError
from privimage_jax.generators.base import PerExampleLoss


@dataclasses.dataclass(frozen=True)
class EDM:
    """Public settings of the diffusion process.

    Attributes:
      sigma_data: standard deviation assumed of the data; sqrt(1/3) is that of values uniform in [-1, 1].
      p_mean, p_std: ln(sigma) ~ N(p_mean, p_std^2) in training.
      label_dropout: share of the training draws with "no label", for classifier-free guidance.
      sigma_min, sigma_max, rho: noise levels of the samplers (5).
    """

    sigma_data: float = math.sqrt(1 / 3)
    p_mean: float = -1.2
    p_std: float = 1.2
    label_dropout: float = 0.1
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def preconditioning(self, sigma: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """(c_skip, c_out, c_in, c_noise) of table 1, each of the shape of ``sigma``."""
        total = sigma**2 + self.sigma_data**2
        return (
            self.sigma_data**2 / total,
            sigma * self.sigma_data / jnp.sqrt(total),
            1 / jnp.sqrt(total),
            jnp.log(sigma) / 4,
        )

    def loss_weight(self, sigma: jax.Array) -> jax.Array:
        """1 / c_out^2, which gives every noise level the same weight at initialisation (section 5)."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


def denoise(model: nn.Module, edm: EDM, params: Any, x: jax.Array, sigma: jax.Array, label: jax.Array) -> jax.Array:
    """D(x; sigma) (7), the expected clean image.

    Args:
      model: a denoiser (`models.registry`).
      edm: settings.
      params: its parameters.
      x: [B,H,W,C] float32, clean image plus noise.
      sigma: [B] float32.
      label: [B] int32, ``n_classes`` for "no label".

    Returns:
      [B,H,W,C] float32.
    """
    c_skip, c_out, c_in, c_noise = edm.preconditioning(sigma)
    c_skip, c_out, c_in = (c[:, None, None, None] for c in (c_skip, c_out, c_in))
    seen: Any = model.apply({"params": params}, c_in * x, c_noise, label)
    return c_skip * x + c_out * seen.astype(jnp.float32)


def make_per_example_loss(
    model: nn.Module, edm: EDM, n_classes: int, noise_multiplicity: int, flip: bool = False, shift: int = 0
) -> PerExampleLoss:
    """The denoising loss of each example, averaged over K noise draws (Dockhorn et al. 2023, noise multiplicity).

    Every draw has its own noise level, noise, label dropout and augmentation, all from its example's key; the draws of
    all examples pass through the network as one batch [B*K].

    Args:
      model: a denoiser (`models.registry`) that treats the examples of a batch independently.
      edm: settings.
      n_classes: classes; also the label that means "no label".
      noise_multiplicity: K.
      flip: mirror left to right with probability 1/2.
      shift: move by up to so many pixels along each axis, repeating the border.

    Returns:
      ``loss(params, batch, keys [B]) -> [B]`` float32; batch = {"image": uint8 or float [B,H,W,C], "label": int32 [B]};
      keys are typed random keys. uint8 images are mapped to [-1, 1], others are taken as they are. An example may have
      an image of its own for each draw: [B,K,H,W,C], and labels [B,K].
    """

    def draw(key: jax.Array, label: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
        label_key, sigma_key, noise_key = jax.random.split(key, 3)
        label = jnp.where(jax.random.bernoulli(label_key, edm.label_dropout), n_classes, label)
        sigma = jnp.exp(edm.p_mean + edm.p_std * jax.random.normal(sigma_key))
        return label, sigma, sigma * jax.random.normal(noise_key, shape)

    def loss(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        draw_keys = jax.vmap(lambda key: jax.random.split(key, (noise_multiplicity, 2)))(keys).reshape(-1, 2)
        image, label = (each_draw(batch[name], batch["label"], noise_multiplicity) for name in ("image", "label"))
        image = augment(to_float(image), draw_keys[:, 0], flip, shift)
        label, sigma, noise = jax.vmap(lambda key, label: draw(key, label, image.shape[1:]))(draw_keys[:, 1], label)
        error = denoise(model, edm, params, image + noise, sigma, label) - image
        per_draw = edm.loss_weight(sigma) * jnp.mean(error**2, axis=(1, 2, 3))
        return per_draw.reshape(-1, noise_multiplicity).mean(axis=1)

    return loss


def each_draw(leaf: jax.Array, label: jax.Array, draws: int) -> jax.Array:
    """A field of a batch for each of the K draws of its examples, [B*K, ...].

    Args:
      leaf: [B, ...], the same for all draws of an example, or [B, K, ...], one for each.
      label: of the batch, [B] or [B, K], which tells the one from the other.
      draws: K.
    """
    if label.ndim == 1:
        return jnp.repeat(leaf, draws, axis=0)
    return leaf.reshape(len(leaf) * draws, *leaf.shape[2:])


@dataclasses.dataclass(frozen=True)
class Churn:
    """Stochasticity of the Heun sampler (algorithm 2); by default none.

    The other defaults are the paper's for ImageNet-64, where s_churn is 40.

    Attributes:
      s_churn: total amount of noise that is added and removed again, over all steps.
      s_min, s_max: only at noise levels within these.
      s_noise: standard deviation of the added noise, relative to what the level asks for.
    """

    s_churn: float = 0.0
    s_min: float = 0.05
    s_max: float = 50.0
    s_noise: float = 1.003


class _Evaluations(NamedTuple):
    """One row per evaluation of the denoiser, float32 [rows]; algorithm 2 written as a flat list.

    A predictor row adds ``noise`` times a standard normal, evaluates at ``sigma`` and moves by ``move`` in sigma. A
    corrector row evaluates where its predictor arrived and repeats that move from the same start with the mean of both
    slopes. One call of the network in the loop keeps compilation short and the number of calls exact.
    """

    sigma: np.ndarray
    move: np.ndarray
    noise: np.ndarray
    corrects: np.ndarray  # bool


def noise_levels(edm: EDM, steps: int) -> np.ndarray:
    """``steps`` levels from sigma_max down to sigma_min (5), then 0; float64 [steps + 1]."""
    ramp = np.linspace(0, 1, steps)
    top, bottom = edm.sigma_max ** (1 / edm.rho), edm.sigma_min ** (1 / edm.rho)
    return np.append((top + ramp * (bottom - top)) ** edm.rho, 0.0)


def _evaluations(edm: EDM, sampler: str, steps: int, churn: Churn) -> _Evaluations:
    levels = noise_levels(edm, steps)
    rows = []
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        raised = level
        if sampler == "heun" and churn.s_min <= level <= churn.s_max:
            raised *= 1 + min(churn.s_churn / steps, math.sqrt(2) - 1)
        noise = churn.s_noise * math.sqrt(raised**2 - level**2)
        rows.append((raised, following - raised, noise, False))
        if sampler == "heun" and following > 0:
            rows.append((following, following - raised, 0.0, True))
    *numbers, corrects = (np.array(column) for column in zip(*rows, strict=True))
    sigmas, moves, noises = (column.astype(np.float32) for column in numbers)
    return _Evaluations(sigmas, moves, noises, corrects)


def sample(
    model: nn.Module,
    edm: EDM,
    params: Any,
    labels: jax.Array,
    keys: jax.Array,
    image_shape: tuple[int, int, int],
    sampler: Literal["ddim", "heun"] = "ddim",
    steps: int = 50,
    guidance: float = 0.0,
    churn: Churn = Churn(),  # noqa: B008 (frozen)
) -> jax.Array:
    """Draws images; all randomness of image i comes from ``keys[i]``, so batches may be cut and sharded at will.

    Args:
      model: a denoiser with a field ``n_classes``.
      edm: settings.
      params: its parameters.
      labels: [B] int32.
      keys: [B] typed random keys.
      image_shape: (H, W, C).
      sampler: "ddim" (Euler steps on the probability-flow ODE, ``steps`` network calls) or "heun" (algorithm 2,
        ``2 steps - 1`` calls).
      steps: number of noise levels above zero.
      guidance: g of classifier-free guidance D_none + (1 + g)(D_label - D_none) (Ho & Salimans 2022); 0 is none, at
        half the cost.
      churn: stochasticity of "heun".

    Returns:
      [B,H,W,C] float32 in [-1, 1]. Meant to be jitted with all but params, labels and keys static.
    """
    if sampler not in ("ddim", "heun"):
        raise UserError(f"sample.sampler: must be 'ddim' or 'heun', not {sampler!r}.")
    if steps < 1:
        raise UserError(f"sample.steps: must be at least 1, not {steps}.")
    rows = _evaluations(edm, sampler, steps, churn)
    stochastic = bool(np.any(rows.noise > 0))
    split = jax.vmap(jax.random.split)(keys)
    start_keys, churn_keys = split[:, 0], split[:, 1]

    def standard_normal(keys: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(key, image_shape))(keys)

    def denoised(x: jax.Array, level: jax.Array) -> jax.Array:
        sigma = jnp.full(labels.shape, level)
        if guidance == 0:
            return denoise(model, edm, params, x, sigma, labels)
        none = jnp.full_like(labels, model.n_classes)
        both = denoise(
            model,
            edm,
            params,
            jnp.concatenate([x, x]),
            jnp.concatenate([sigma, sigma]),
            jnp.concatenate([labels, none]),
        )
        with_label, without = jnp.split(both, 2)
        return without + (1 + guidance) * (with_label - without)

    def evaluate(carry: tuple[jax.Array, jax.Array, jax.Array], row: tuple[Any, jax.Array]) -> tuple[Any, None]:
        x, start, first_slope = carry
        (level, move, noise, corrects), number = row
        if stochastic:
            x += noise * standard_normal(jax.vmap(jax.random.fold_in, (0, None))(churn_keys, number))
        slope = (x - denoised(x, level)) / level  # dx/dsigma (3)
        start = jnp.where(corrects, start, x)
        mean_slope = jnp.where(corrects, (first_slope + slope) / 2, slope)
        return (start + move * mean_slope, start, slope), None

    x = edm.sigma_max * standard_normal(start_keys)
    (x, _, _), _ = lax.scan(evaluate, (x, x, x), (jax.tree.map(jnp.asarray, rows), jnp.arange(len(rows.sigma))))
    return jnp.clip(x, -1, 1)
