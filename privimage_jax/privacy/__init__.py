"""The privacy core: flat files that can each be audited alone; `dp_sgd.py` alone composes them.

It is also a library. Its names are loaded on first use, so that importing this package costs nothing:

>>> from privimage_jax.privacy import poisson_rate, solve_noise_multiplier
>>> rate = poisson_rate(batch_size=256, n=60_000)
>>> solve_noise_multiplier(3.0, 1e-6, rate, 1000)
0.6868

Wrong arguments raise `ValueError`. `examples/dp_sgd_in_your_loop.py` shows a whole training.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from privimage_jax.privacy.accounting import epsilon as epsilon
    from privimage_jax.privacy.accounting import solve_noise_multiplier as solve_noise_multiplier
    from privimage_jax.privacy.chacha import new_key as new_key
    from privimage_jax.privacy.clipping import clipped_grad as clipped_grad
    from privimage_jax.privacy.clipping import per_example_gradients as per_example_gradients
    from privimage_jax.privacy.dp_sgd import DPSGD as DPSGD
    from privimage_jax.privacy.dp_sgd import dp_step as dp_step
    from privimage_jax.privacy.dp_sgd import with_noise_state as with_noise_state
    from privimage_jax.privacy.events import Gaussian as Gaussian
    from privimage_jax.privacy.events import SampledGaussian as SampledGaussian
    from privimage_jax.privacy.ledger import Ledger as Ledger
    from privimage_jax.privacy.noise import INDEPENDENT as INDEPENDENT
    from privimage_jax.privacy.noise import Noise as Noise
    from privimage_jax.privacy.noise import gaussian as gaussian
    from privimage_jax.privacy.noise import rounded_gaussian as rounded_gaussian
    from privimage_jax.privacy.objective_check import check_objective as check_objective
    from privimage_jax.privacy.people import People as People
    from privimage_jax.privacy.people import group as group
    from privimage_jax.privacy.records import place as place
    from privimage_jax.privacy.sampling import poisson_rate as poisson_rate
    from privimage_jax.privacy.sum_check import check_sum as check_sum
    from privimage_jax.privacy.verification import verify as verify

_MODULE_OF = {
    "DPSGD": "dp_sgd",  # the public settings of DP-SGD
    "dp_step": "dp_sgd",  # one step: sampling, clipping, noise, update
    "check_objective": "objective_check",  # whether a loss keeps examples apart
    "check_sum": "sum_check",  # whether this device's compiler keeps sums exact
    "with_noise_state": "dp_sgd",  # a state for noise that carries one
    "clipped_grad": "clipping",  # the sum of clipped per-example gradients
    "per_example_gradients": "clipping",
    "poisson_rate": "sampling",  # the exact sampling rate, for the accountant
    "epsilon": "accounting",  # of composed mechanisms
    "solve_noise_multiplier": "accounting",
    "Gaussian": "events",  # mechanisms, as the accountant takes them
    "SampledGaussian": "events",
    "new_key": "chacha",  # 256 bits from the operating system
    "Noise": "noise",  # what a step adds, and what it costs
    "INDEPENDENT": "noise",  # fresh Gaussian noise in each step: the default
    "gaussian": "noise",  # from ChaCha20, for a noise of your own
    "rounded_gaussian": "noise",  # noise for counts, on the host
    "Ledger": "ledger",  # what was spent, chained by hashes
    "verify": "verification",  # a ledger, recomputed with dp-accounting alone
    "group": "people",  # a data set by people, each of whom is one record
    "People": "people",
    "place": "records",  # a data set on the devices, replicated or sharded
}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
