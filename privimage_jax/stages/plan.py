"""The privacy plan: which mechanisms a config runs, with which noise, so that together they cost at most epsilon."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
from ml_collections import ConfigDict

import privimage_jax
from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.models import registry
from privimage_jax.privacy import accounting, sampling
from privimage_jax.rounding import plain_up

# The mechanisms' names, as the ledger has them.
SEMANTIC_QUERY = "semantic query"
CLASS_HISTOGRAM = "class histogram"
FINE_TUNING = "DP-SGD fine-tuning"
SAMPLER_CHOICE = "sampler choice"

_NOISE_KEYS = {  # of the mechanisms that release noisy counts, in the order in which they run
    SEMANTIC_QUERY: "query.noise_multiplier",
    CLASS_HISTOGRAM: "class_histogram.noise_multiplier",
    SAMPLER_CHOICE: "sampler_choice.noise_multiplier",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Public numbers of the mechanisms, fixed before any runs.

    `count_noise` has, for every mechanism that releases noisy counts and is run, its noise multiplier, relative to its
    L2 sensitivity; that of the semantic query is sigma1. `finetune_noise` (sigma2) is relative to the clip norm, and
    None when DP-SGD is not run. `sampling_rate` is the exact q that a 32-bit threshold stands for.
    """

    epsilon: float
    delta: float
    n: int
    accountant: str
    count_noise: Mapping[str, float]
    finetune_noise: float | None
    sampling_rate: float
    steps: int

    @property
    def mechanisms(self) -> list[str]:
        """The names of all that share the budget."""
        return [*self.count_noise, *([] if self.finetune_noise is None else [FINE_TUNING])]

    def events(self) -> list:
        """The planned mechanisms as events of `privacy.accounting`."""
        events: list = [accounting.Gaussian(noise) for noise in self.count_noise.values()]
        if self.finetune_noise is not None:
            events.append(accounting.SampledGaussian(self.finetune_noise, self.sampling_rate, self.steps))
        return events

    def spent(self, events: list, accountant: str | None = None) -> float:
        """The epsilon of some events at the plan's delta, rounded up."""
        return accounting.epsilon(events, self.delta, accountant or self.accountant)


def count_noise(config: ConfigDict) -> dict[str, float]:
    """Mechanism -> noise multiplier, of those that release noisy counts and that this config runs."""
    runs = {
        SEMANTIC_QUERY: config.selection.method == "semantic",
        CLASS_HISTOGRAM: config.class_histogram.enabled,
        SAMPLER_CHOICE: config.sampler_choice.enabled,
    }
    return {name: float(_value(config, key)) for name, key in _NOISE_KEYS.items() if runs[name]}


def reserved(config: ConfigDict) -> dict[str, Any]:
    """The settings that decide how much of the budget is reserved beside DP-SGD: what sigma2 depends on."""
    return {
        **{f"{section}.enabled": config[section].enabled for section in ("class_histogram", "sampler_choice")},
        **{_NOISE_KEYS[name]: noise for name, noise in count_noise(config).items()},
    }


def _value(config: ConfigDict, key: str) -> Any:
    section, name = key.split(".")
    return config[section][name]


def make_plan(config: ConfigDict, n: int) -> Plan:
    """Reserves the share of every other mechanism, whenever it runs, and solves sigma2 for what remains.

    Args:
      config: a checked configuration.
      n: number of sensitive training images (public).

    Raises:
      UserError: if the others alone exceed epsilon.
    """
    configs.check_against_n(config, n)
    return _solve(
        epsilon=float(config.privacy.epsilon),
        delta=configs.delta(config, n),
        n=n,
        accountant=config.privacy.accountant,
        count_noise=tuple(count_noise(config).items()),
        batch_size=config.finetune.batch_size,
        steps=configs.finetune_steps(config, n),
    )


@functools.cache
def _solve(epsilon, delta, n, accountant, count_noise, batch_size, steps) -> Plan:
    rate = sampling.sampling_rate(sampling.threshold(batch_size, n)) if steps else 0.0
    others = [accounting.Gaussian(noise) for _, noise in count_noise]
    if (cost := accounting.epsilon(others, delta, accountant)) > epsilon:
        names = [name for name, _ in count_noise]
        raise UserError(
            f"the {' and the '.join(names)} alone cost{'s' * (len(names) == 1)} epsilon {cost:.4f}, more than "
            f"config.privacy.epsilon = {epsilon:g}; raise "
            f"{', '.join(f'config.{_NOISE_KEYS[name]}' for name in names)} or config.privacy.epsilon."
        )
    noise = accounting.solve_noise_multiplier(epsilon, delta, rate, steps, others, accountant) if steps else None
    return Plan(epsilon, delta, n, accountant, dict(count_noise), noise, rate, steps)


def describe(plan: Plan) -> str:
    """The plan as a table: every mechanism, its noise, and its epsilon, alone and together, by both accountants."""
    lines = [
        f"epsilon = {plan.epsilon:g}, delta = {plan.delta:.4g}, N = {plan.n}, solved with {plan.accountant}",
        "",
        f"{'mechanism':<44}{'epsilon (pld)':>15}{'epsilon (rdp)':>15}",
    ]
    rows = []
    for name, noise in plan.count_noise.items():
        symbol = "sigma1" if name == SEMANTIC_QUERY else "noise multiplier"
        rows.append((f"{name}: {symbol} = {noise:g}", [accounting.Gaussian(noise)]))
    if plan.finetune_noise is not None:
        event = accounting.SampledGaussian(plan.finetune_noise, plan.sampling_rate, plan.steps)
        rows.append(
            (f"DP-SGD: sigma2 = {plan.finetune_noise:.4g}, q = {plan.sampling_rate:.4g}, T = {plan.steps}", [event])
        )
    rows.append(("together", plan.events()))
    for name, events in rows:
        pld, rdp = (plan.spent(events, accountant) if events else 0.0 for accountant in ("pld", "rdp"))
        lines.append(f"{name:<44}{plain_up(pld, 6):>15}{plain_up(rdp, 6):>15}")
    return "\n".join(lines)


def code_version(config: ConfigDict) -> str:
    """A digest of the code that determines what the mechanisms see and do; part of a replay's identity.

    It covers the privacy core, the models, what lies between them and the data, the files of models that are named by
    import strings, and the versions of the numerical libraries.
    """
    root = Path(privimage_jax.__file__).parent
    networks = [config.model.name, config.query_net.model]
    files = [
        *sorted(root.glob("privacy/*.py")),
        *sorted(root.glob("models/*.py")),
        *(root / f"stages/{name}.py" for name in ("query", "class_histogram", "noisy_counts", "finetune", "generator")),
        *(root / f"training/{name}.py" for name in ("state", "lora", "loop", "mesh", "precision", "residency")),
        root / "metrics/features.py",
        root / "diffusion.py",
        root / "augment.py",
        root / "pixels.py",
    ]
    if config.sampler_choice.enabled:
        networks.append(config.sampler_choice.classifier)
        files += [root / "stages/choose_sampler.py", root / "metrics/downstream.py"]
        files += sorted(root.glob("training/*.py"))
    files += [registry.source_file(name) for name in networks if ":" in name]
    versions = [f"{module.__name__} {module.__version__}" for module in (privimage_jax, jax, jaxlib, flax, optax, np)]
    digest = hashlib.sha256(", ".join(versions).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
