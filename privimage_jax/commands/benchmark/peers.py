"""What the benchmark compares with: the same training step by other libraries, each used as its documentation says.

- `jax_privacy` (`jax_privacy.clipped_grad`) and `optax` (`optax.contrib.differentially_private_aggregate`) get the very
  loss that our own steps get, of an unmodified network, and the microbatch that ours have (optax: the whole batch).
- `opacus` and `torch_nonprivate` get a twin of the zoo's UNet in PyTorch with the same parameters; before anything is
  measured, the number of parameters and the outputs on random inputs are compared. Opacus clips per row of a batch, so
  the gradients of an example's K draws are added before its optimizer sees them, as DPDM does (Dockhorn et al. 2023).

A peer draws no Poisson batch: its batch is given, on the device, which is in its favour. The precision is the same for
all. In PyTorch, "tf32" lets products of float32 values use it; "bfloat16" is autocast beside that, with float32
parameters as ours.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import optax

from privimage_jax.commands.benchmark import torch_twin
from privimage_jax.commands.benchmark.problems import Problem
from privimage_jax.generators.base import Generator
from privimage_jax.generators.diffusion import Diffusion
from privimage_jax.models.unet import UNet

MODULES = {
    "jax_privacy": ("jax_privacy",),
    "optax": ("optax",),
    "opacus": ("torch", "opacus"),
    "torch_nonprivate": ("torch",),
}
JAX_PEERS, TORCH_PEERS = ("jax_privacy", "optax"), ("opacus", "torch_nonprivate")
INSTALL = 'pip install --constraint constraints.txt --editable ".[peers]"'


def missing(name: str) -> str | None:
    """One sentence on how to install a peer, or None where it is installed."""
    absent = [module for module in MODULES[name] if importlib.util.find_spec(module) is None]
    if not absent:
        return None
    return f"{name} is left out, as {' and '.join(absent)} cannot be imported; install the extra: {INSTALL}."


def unsuited(name: str, problem: Problem) -> str | None:
    """One sentence on why an installed peer cannot do this problem, or None."""
    if name in TORCH_PEERS and not _is_unet(problem.generator):
        return f"{name} is left out: its PyTorch twin is that of config.model.name=unet alone."
    if name in TORCH_PEERS and jax.default_backend() != "cpu" and not torch_twin.import_torch().cuda.is_available():
        return f"{name} is left out: this torch finds no GPU, and a comparison across devices would say nothing."
    return None


def _is_unet(generator: Generator) -> bool:
    return isinstance(generator, Diffusion) and type(generator.model) is UNet


def jax_step(name: str, problem: Problem) -> Callable[[dict, dict, jax.Array], tuple[dict, Any]]:
    """`step(state, batch, key) -> (state, aside)` of a JAX peer, to be compiled.

    Args:
      name: one of `JAX_PEERS`.
      problem: the setting.

    Returns:
      A function of the state, a batch {"image" uint8 [B,H,W,C], "label" int32 [B]} and a jax.random key. `aside` is
      what its library keeps between steps.
    """
    return {"jax_privacy": _jax_privacy_step, "optax": _optax_step}[name](problem)


def _loss_of_one(problem: Problem, params: Any, batch: dict, key_data: jax.Array) -> jax.Array:
    """The loss of a batch of one; keys as plain numbers, which every library can slice."""
    return problem.loss(params, batch, jax.random.wrap_key_data(key_data))[0]


def _jax_privacy_step(problem: Problem) -> Callable[[dict, dict, jax.Array], tuple[dict, Any]]:
    from jax_privacy.clipping import clipped_grad

    microbatch = problem.divisor(problem.microbatch)
    gradient = clipped_grad(
        functools.partial(_loss_of_one, problem),
        l2_clip_norm=problem.clip_norm,
        batch_argnums=(1, 2),
        microbatch_size=None if microbatch == problem.batch_size else microbatch,
    )
    std, update = problem.noise_multiplier * problem.clip_norm, problem.update()

    def step(state: dict, batch: dict, key: jax.Array) -> tuple[dict, Any]:
        loss_key, noise_key = jax.random.split(key)
        keys = jax.random.key_data(jax.random.split(loss_key, problem.batch_size))
        total = gradient(state["params"], batch, keys)
        noise = optax.tree.random_like(noise_key, total, sampler=jax.random.normal)
        mean = jax.tree.map(lambda g, z: (g + std * z) / problem.batch_size, total, noise)
        return update(state, mean), ()

    return step


def _optax_step(problem: Problem) -> Callable[[dict, dict, jax.Array], tuple[dict, Any]]:
    from optax.contrib import differentially_private_aggregate

    update = problem.update()

    def step(state: dict, batch: dict, key: jax.Array) -> tuple[dict, Any]:
        loss_key, noise_key = jax.random.split(key)
        keys = jax.random.key_data(jax.random.split(loss_key, problem.batch_size))
        batch = jax.tree.map(lambda leaf: leaf[:, None], batch)
        loss = functools.partial(_loss_of_one, problem)
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(state["params"], batch, keys[:, None])
        aggregate = differentially_private_aggregate(problem.clip_norm, problem.noise_multiplier, noise_key)
        mean, aside = aggregate.update(gradients, aggregate.init(state["params"]))
        return update(state, mean), aside

    return step
