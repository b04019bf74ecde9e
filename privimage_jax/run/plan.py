"""The privacy plan: which mechanisms a config runs, with which noise, so that together they cost at most epsilon."""

import dataclasses
import functools
from collections.abc import Mapping

from ml_collections import ConfigDict

from privimage_jax.errors import UserError
from privimage_jax.privacy import accounting, sampling, summation
from privimage_jax.privacy.noise import INDEPENDENT
from privimage_jax.privacy.rounding import plain_up
from privimage_jax.run.stage import Mechanism, counting, solved_mechanism, symbol, value
from privimage_jax.settings import derived, units

NOISE = INDEPENDENT  # of DP-SGD; the ledger's lines "dp-sgd" and their verification know its event, and no other
_FAR = 10.0  # times the budget: what rdp says costs more is not asked of pld


@dataclasses.dataclass(frozen=True)
class Plan:
    """Public numbers of the mechanisms, fixed before any runs.

    `reserved` has, for every mechanism that releases noisy counts and is run, what it costs. `finetune_noise` (sigma2)
    is relative to the clip norm, and None when DP-SGD is not run. `sampling_rate` is the exact q that a 32-bit
    threshold stands for.
    """

    epsilon: float
    delta: float
    n: int
    accountant: str
    reserved: Mapping[str, accounting.Event]
    finetune_noise: float | None
    sampling_rate: float
    steps: int

    @property
    def count_noise(self) -> dict[str, float]:
        """The noise multipliers of `reserved`, relative to L2 sensitivities; that of the semantic query is sigma1."""
        return {name: event.noise_multiplier for name, event in self.reserved.items()}

    @property
    def mechanisms(self) -> list[str]:
        """The names of all that share the budget."""
        return [*self.reserved, *([] if self.finetune_noise is None else [solved_mechanism().name])]

    @property
    def noise_multiplier(self) -> float:
        """That of fine-tuning, where it is planned."""
        if self.finetune_noise is None:
            raise ValueError("the plan holds no fine-tuning")
        return self.finetune_noise

    def events(self) -> list[accounting.Event]:
        """The planned mechanisms as events of `privacy.accounting`."""
        events = list(self.reserved.values())
        if self.finetune_noise is not None:
            events.append(NOISE.event(self.finetune_noise, self.sampling_rate, self.steps))
        return events

    def spent(self, events: list[accounting.Event], accountant: str | None = None) -> float:
        """The epsilon of some events at the plan's delta, rounded up."""
        return accounting.epsilon(events, self.delta, accountant or self.accountant)


def make_plan(config: ConfigDict, n: int, begun: float | None = None) -> Plan:
    """Reserves the share of every other mechanism, whenever it runs, and solves sigma2 for what remains.

    Args:
      config: a checked configuration.
      n: number of sensitive training images, or of people where these are the unit (public).
      begun: the delta of the run's ledger, if that was opened: see `derived.delta`.

    Raises:
      UserError: if the others alone exceed epsilon, one draws more records than there are, or a batch is too large.
    """
    derived.check_against_n(config, n)
    if config.finetune.enabled and config.finetune.batch_size > summation.LARGEST_BATCH and n > summation.MOST_TERMS:
        raise UserError(
            f"config.finetune.batch_size={config.finetune.batch_size} is more than the sum of gradients is proven for; "
            f"give at most {summation.LARGEST_BATCH}."
        )
    return _solve(
        epsilon=float(config.privacy.epsilon),
        delta=derived.delta(config, n, begun),
        n=n,
        accountant=config.privacy.accountant,
        others=tuple((one.name, one.noise_multiplier, _event(config, one, n)) for one in counting(config)),
        batch_size=config.finetune.batch_size,
        steps=derived.finetune_steps(config, n),
    )


def _event(config: ConfigDict, mechanism: Mechanism, n: int) -> accounting.Event:
    """What a mechanism of noisy counts costs: one Gaussian on all records, or one on each of its Poisson samples."""
    noise = float(value(config, mechanism.noise_multiplier))
    if not mechanism.sample_size:
        return accounting.Gaussian(noise)
    size = value(config, mechanism.sample_size)
    derived.check_sample(config, mechanism.sample_size, size, n)
    return accounting.SampledGaussian(noise, sampling.poisson_rate(size, n), value(config, mechanism.samples))


def noise_by_accountant(config: ConfigDict, n: int, delta: float | None = None) -> dict[str, float | None]:
    """sigma2 as each accountant solves it for the same budget: accountant -> noise multiplier of DP-SGD.

    None stands for an accountant by which the other mechanisms leave too little, or nothing at all. Solving takes a
    second or so and is done once in a process.

    Args:
      config: a checked configuration, whose `privacy.accountant` is not looked at.
      n: number of sensitive training images, or of people where these are the unit (public).
      delta: of the plan; None is the config's.

    Returns:
      {} where nothing is fine-tuned.
    """
    if not derived.finetune_steps(config, n):
        return {}
    found: dict[str, float | None] = {}
    for accountant in accounting.ACCOUNTANTS:
        other = config.copy_and_resolve_references()
        other.privacy.accountant, other.privacy.delta = accountant, delta or config.privacy.delta
        try:
            found[accountant] = make_plan(other, n).finetune_noise
        except UserError:
            found[accountant] = None
    return found


@functools.cache
def _solve(
    epsilon: float,
    delta: float,
    n: int,
    accountant: str,
    others: tuple[tuple[str, str, accounting.Event], ...],
    batch_size: int,
    steps: int,
) -> Plan:
    """The plan; `others` has the name, the setting of the noise, and the cost of each mechanism of noisy counts."""
    rate = sampling.sampling_rate(sampling.threshold(batch_size, n)) if steps else 0.0
    events = [event for _, _, event in others]
    if (cost := _cost(events, delta, accountant, epsilon)) > epsilon:
        raise UserError(
            f"the {' and the '.join(name for name, _, _ in others)} alone cost{'s' * (len(others) == 1)} epsilon "
            f"{cost:.4f}, more than config.privacy.epsilon = {epsilon:g}; raise "
            f"{', '.join(f'config.{key}' for _, key, _ in others)} or config.privacy.epsilon."
        )
    noise = None
    if steps:
        try:
            noise = accounting.solve_noise_multiplier(epsilon, delta, rate, steps, events, accountant, NOISE.event)
        except ValueError as error:
            raise UserError(f"config.privacy: {error}") from None
    return Plan(epsilon, delta, n, accountant, {name: event for name, _, event in others}, noise, rate, steps)


def _cost(events: list[accounting.Event], delta: float, accountant: str, most: float) -> float:
    """The epsilon of some events, or a bound on it where that is far above `most`.

    Next to no noise takes pld minutes and gigabytes; rdp bounds it in a moment, and is never off by that factor.
    """
    bound = accounting.epsilon(events, delta, "rdp")
    return bound if bound > _FAR * (most + 1) else accounting.epsilon(events, delta, accountant)


def describe(plan: Plan, config: ConfigDict) -> str:
    """The plan as a table: every mechanism, its noise, and its epsilon, alone and together, by both accountants.

    All numbers are rounded up: with a noise rounded down, what is shown would cost more than the budget.
    """
    rows: list[tuple[str, list[accounting.Event]]] = []
    for name, event in plan.reserved.items():
        samples = ""
        if isinstance(event, accounting.SampledGaussian):
            samples = f", q = {plain_up(event.sampling_rate)}, T = {event.steps}"
        rows.append((f"{name}: {symbol(config, name)} = {plain_up(event.noise_multiplier, 6)}{samples}", [event]))
    if plan.finetune_noise is not None:
        event = NOISE.event(plan.finetune_noise, plan.sampling_rate, plan.steps)
        noise, rate = plain_up(plan.finetune_noise, 6), plain_up(plan.sampling_rate)
        rows.append((f"DP-SGD: sigma2 = {noise}, q = {rate}, T = {plan.steps}", [event]))
    rows.append(("together", plan.events()))
    handed_out = plain_up(plan.n * plan.delta, 2)
    width = max(44, *(len(name) + 2 for name, _ in rows))
    n = f"{plan.n} {units.unit(config).several}"
    lines = [
        f"epsilon = {plan.epsilon:g}, delta = {plain_up(plan.delta)}, N = {n}, solved with {plan.accountant}",
        f"N delta = {handed_out}: a mechanism that hands out one random record with that chance meets this delta",
        "",
        f"{'mechanism':<{width}}{'epsilon (pld)':>15}{'epsilon (rdp)':>15}",
    ]
    for name, events in rows:
        pld, rdp = (plan.spent(events, accountant) if events else 0.0 for accountant in ("pld", "rdp"))
        lines.append(f"{name:<{width}}{plain_up(pld, 6):>15}{plain_up(rdp, 6):>15}")
    if plan.finetune_noise is not None:
        lines += ["", *_noise_table(plan, config, width)]
    return "\n".join(lines)


def _noise_table(plan: Plan, config: ConfigDict, width: int) -> list[str]:
    """sigma1, which is a setting, beside sigma2 as each accountant solves it; a line for each."""
    names = {symbol(config, name): plain_up(noise, 6) for name, noise in plan.count_noise.items()}
    sigma1 = names.get("sigma1", "–")
    lines = [f"{'accountant':<{width}}{'sigma1':>15}{'sigma2':>15}"]
    for accountant, noise in noise_by_accountant(config, plan.n, plan.delta).items():
        name = f"{accountant} (used)" if accountant == plan.accountant else accountant
        sigma2 = "none suffices" if noise is None else plain_up(noise, 6)
        lines.append(f"{name:<{width}}{sigma1:>15}{sigma2:>15}")
    return lines
