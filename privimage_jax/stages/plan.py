"""The privacy plan: which mechanisms a config runs, with which noise, so that together they cost at most epsilon."""

import dataclasses
import functools
import hashlib
from pathlib import Path

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

# The mechanisms' names, as the ledger has them.
SEMANTIC_QUERY = "semantic query"
FINE_TUNING = "DP-SGD fine-tuning"


@dataclasses.dataclass(frozen=True)
class Plan:
    """Public numbers of the two mechanisms, fixed before either runs.

    `query_noise` (sigma1) is relative to the query's L2 sensitivity sqrt(k1), `finetune_noise` (sigma2) to the clip
    norm; each is None when its mechanism is not run. `sampling_rate` is the exact q that a 32-bit threshold stands for.
    """

    epsilon: float
    delta: float
    n: int
    accountant: str
    query_noise: float | None
    finetune_noise: float | None
    sampling_rate: float
    steps: int

    @property
    def mechanisms(self) -> list[str]:
        """The names of all that share the budget."""
        shares = {SEMANTIC_QUERY: self.query_noise, FINE_TUNING: self.finetune_noise}
        return [name for name, noise in shares.items() if noise is not None]

    def events(self) -> list:
        """The planned mechanisms as events of `privacy.accounting`."""
        events: list = []
        if self.query_noise is not None:
            events.append(accounting.Gaussian(self.query_noise))
        if self.finetune_noise is not None:
            events.append(accounting.SampledGaussian(self.finetune_noise, self.sampling_rate, self.steps))
        return events

    def spent(self, events: list, accountant: str | None = None) -> float:
        """The epsilon of some events at the plan's delta, rounded up."""
        return accounting.epsilon(events, self.delta, accountant or self.accountant)


def make_plan(config: ConfigDict, n: int) -> Plan:
    """Reserves the query's share and solves sigma2 for what remains.

    Args:
      config: a checked configuration.
      n: number of sensitive training images (public).

    Raises:
      UserError: if the query alone exceeds epsilon.
    """
    configs.check_against_n(config, n)
    return _solve(
        epsilon=float(config.privacy.epsilon),
        delta=configs.delta(config, n),
        n=n,
        accountant=config.privacy.accountant,
        query_noise=float(config.query.noise_multiplier) if config.selection.method == "semantic" else None,
        batch_size=config.finetune.batch_size,
        steps=configs.finetune_steps(config, n),
    )


@functools.cache
def _solve(epsilon, delta, n, accountant, query_noise, batch_size, steps) -> Plan:
    rate = sampling.sampling_rate(sampling.threshold(batch_size, n)) if steps else 0.0
    reserved = [accounting.Gaussian(query_noise)] if query_noise is not None else []
    if (cost := accounting.epsilon(reserved, delta, accountant)) > epsilon:
        raise UserError(
            f"the semantic query alone costs epsilon {cost:.4f}, more than config.privacy.epsilon = {epsilon:g}; raise "
            "config.query.noise_multiplier or config.privacy.epsilon."
        )
    noise = accounting.solve_noise_multiplier(epsilon, delta, rate, steps, reserved, accountant) if steps else None
    return Plan(epsilon, delta, n, accountant, query_noise, noise, rate, steps)


def describe(plan: Plan) -> str:
    """The plan as a table: every mechanism, its noise, and its epsilon, alone and together, by both accountants."""
    lines = [
        f"epsilon = {plan.epsilon:g}, delta = {plan.delta:.4g}, N = {plan.n}, solved with {plan.accountant}",
        "",
        f"{'mechanism':<44}{'epsilon (pld)':>15}{'epsilon (rdp)':>15}",
    ]
    rows = []
    if plan.query_noise is not None:
        rows.append((f"semantic query: sigma1 = {plan.query_noise:g}", [accounting.Gaussian(plan.query_noise)]))
    if plan.finetune_noise is not None:
        event = accounting.SampledGaussian(plan.finetune_noise, plan.sampling_rate, plan.steps)
        rows.append(
            (f"DP-SGD: sigma2 = {plan.finetune_noise:.4g}, q = {plan.sampling_rate:.4g}, T = {plan.steps}", [event])
        )
    rows.append(("together", plan.events()))
    for name, events in rows:
        pld, rdp = (plan.spent(events, accountant) if events else 0.0 for accountant in ("pld", "rdp"))
        lines.append(f"{name:<44}{pld:>15.4f}{rdp:>15.4f}")
    return "\n".join(lines)


def code_version(config: ConfigDict) -> str:
    """A digest of the code that determines what the mechanisms see and do; part of a replay's identity.

    It covers the privacy core, the models, what lies between them and the data, the files of models that are named by
    import strings, and the versions of the numerical libraries.
    """
    root = Path(privimage_jax.__file__).parent
    files = [
        *sorted(root.glob("privacy/*.py")),
        *sorted(root.glob("models/*.py")),
        *(root / f"stages/{name}.py" for name in ("query", "finetune", "generator")),
        *(root / f"training/{name}.py" for name in ("state", "lora", "loop", "mesh")),
        root / "metrics/features.py",
        root / "diffusion.py",
        root / "augment.py",
        root / "pixels.py",
        *(registry.source_file(name) for name in (config.model.name, config.query_net.model) if ":" in name),
    ]
    versions = [f"{module.__name__} {module.__version__}" for module in (privimage_jax, jax, jaxlib, flax, optax, np)]
    digest = hashlib.sha256(", ".join(versions).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
