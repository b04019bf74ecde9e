"""Programs that are traced and compiled once for several runs of one config, as each run would make them again."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from privimage_jax.generators import artefact
from privimage_jax.models import registry
from privimage_jax.stages import finetune, pretrain, query, sample, train_query
from privimage_jax.stages.parts import preflight
from privimage_jax.training import loop
from privimage_jax.training.state import tree_digest


def kept(patch: pytest.MonkeyPatch, owner: Any, name: str, key=lambda *arguments: None, results=None) -> None:
    """Lets a function be called once for each key, in `results`: what it returns is the same in every run of a config.

    Arrays are returned as copies, as a step may be given them to keep. What is made while something is traced belongs
    to that trace, and is made again.
    """
    original, results = getattr(owner, name), {} if results is None else results

    def call(*arguments, **more):
        if (which := key(*arguments)) not in results:
            made = original(*arguments, **more)
            if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(made)):
                return made
            results[which] = made
        return jax.tree.map(lambda leaf: jnp.array(leaf) if isinstance(leaf, jax.Array) else leaf, results[which])

    patch.setattr(owner, name, call)


def keep_programs(patch: pytest.MonkeyPatch, results: dict[str, dict] | None = None) -> None:
    """Keeps the programs of all stages for the runs of one config on one device.

    Args:
      results: what is kept, to be kept beyond this patch.
    """
    results = {} if results is None else results
    for owner, name, key in (
        (loop, "make_runner", lambda step: (step.__module__, step.__qualname__)),
        *((owner, "Sampler", lambda generator, mesh: "") for owner in (finetune, pretrain, sample)),
        (registry, "init_denoiser", lambda *arguments: None),
        (pretrain, "compiled_loss", lambda generator: ""),
        (artefact, "shapes", lambda generator: ""),
        (train_query, "shapes", lambda *arguments: None),
        (query, "forward", lambda model, variables: tree_digest(variables)),
        (finetune.objective_check, "check_objective", lambda *arguments: None),
        (finetune.sum_check, "check_sum", lambda: None),
        (finetune.clipping, "left_to_vmap", lambda *arguments: None),
        (preflight, "check_models", lambda *arguments: None),
    ):
        kept(patch, owner, name, key, results.setdefault(f"{owner.__name__}.{name}", {}))
