"""Mechanisms as the accountant takes them. Noise multipliers are relative to the L2 sensitivity."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """One Gaussian mechanism on all records; noise std = noise_multiplier * L2 sensitivity."""

    noise_multiplier: float


@dataclasses.dataclass(frozen=True)
class SampledGaussian:
    """`steps` Gaussian mechanisms, each on a Poisson sample in which every record is with probability sampling_rate."""

    noise_multiplier: float
    sampling_rate: float
    steps: int


Event = Gaussian | SampledGaussian
