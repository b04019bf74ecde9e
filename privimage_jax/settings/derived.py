"""Values that follow from the settings and from public facts of the data, and checks of these."""

import math

from ml_collections import ConfigDict

from privimage_jax.errors import UserError
from privimage_jax.settings.units import unit


class TooFewSemantics(UserError):
    """There are fewer public classes than sensitive ones, so that no number of picks would do."""


FEW = 5_000  # records, below which 1 / (N ln N) allows too much


def delta(config: ConfigDict, n: int, begun: float | None = None) -> float:
    """The delta of the guarantee: as given, or by default N^-1.5 below 5,000 records and 1 / (N ln N) from there on.

    N delta is the chance with which a mechanism may hand out one record, drawn at random, and still be within delta.
    Under 1 / (N ln N) it is 1 / ln N, which is 14% for 1,437 records; under N^-1.5 it is 2.7%.

    Args:
      config: whose `privacy.delta` is 0 for the default.
      n: number of sensitive training images, or of people where these are the unit.
      begun: that of a ledger which an earlier version may have opened, when 1 / (N ln N) was the default for all.
    """
    of_many = 1 / (n * math.log(n))
    return config.privacy.delta or (of_many if n >= FEW or begun == of_many else n**-1.5)


def picks_semantics(config: ConfigDict) -> bool:
    """Whether pre-training sees the public images of some semantics alone."""
    return config.selection.method in ("semantic", "random")


def k2(config: ConfigDict, n_classes: int, n_semantics: int) -> int:
    """Semantics picked for each class: as given, or from the ratio of public classes to use."""
    if config.selection.ratio:
        return _floor(config.selection.ratio * n_semantics / n_classes)
    return config.selection.k2


def finetune_steps(config: ConfigDict, n: int) -> int:
    """Number of DP-SGD steps T."""
    if not config.finetune.enabled:
        return 0
    return config.finetune.steps or max(1, _floor(config.finetune.epochs * n / config.finetune.batch_size))


def declared_n(config: ConfigDict) -> int:
    """The public number N of sensitive training images, or of people, as the config declares it.

    Raises:
      UserError: where it is left to be counted.
    """
    if not config.data.n:
        several = unit(config).several
        raise UserError(
            f"config.data.n is 0; give the number of sensitive training {several}, as --config.data.n=60000."
        )
    return int(config.data.n)


def check_against_n(config: ConfigDict, n: int) -> None:
    """Checks what depends on the public number N of sensitive training images, or of people where these are the unit.

    Raises:
      UserError: if delta is not below 1/N, or the expected batch or subset of noisy means is larger than N.
    """
    if n < 3:
        raise UserError(f"the sensitive training part has N={n} {unit(config).several}; give at least 3.")
    if delta(config, n) >= 1 / n:
        raise UserError(
            f"config.privacy.delta={config.privacy.delta} is not below 1/N = {1 / n:.3g} for N={n} "
            f"{unit(config).several}; give a smaller value, or 0 for the default."
        )
    if config.finetune.enabled:
        check_sample(config, "finetune.batch_size", config.finetune.batch_size, n)
    if config.warmup.enabled:
        check_sample(config, "warmup.subset_size", config.warmup.subset_size, n)


def check_sample(config: ConfigDict, key: str, size: int, n: int) -> None:
    """Checks that a mechanism draws no more than all N records in expectation.

    Args:
      config: of the run.
      key: the setting "section.key" that says how many.
      size: its value.
      n: the public number of records.

    Raises:
      UserError: naming the setting.
    """
    if size > n:
        raise UserError(
            f"config.{key}={size} is larger than the N={n} sensitive training {unit(config).several}; give at most {n}."
        )


def check_pretraining(config: ConfigDict) -> None:
    """Checks what the settings of pre-training and of the noisy means say of each other.

    Raises:
      UserError: if means cannot be made smaller as asked, or weights are perturbed in a training that is off.
    """
    if config.warmup.enabled and config.data.image_size % config.warmup.downscale:
        raise UserError(
            f"config.warmup.downscale={config.warmup.downscale} does not divide "
            f"config.data.image_size={config.data.image_size}; give one that does, such as 1."
        )
    if config.pretrain.perturbation and not (config.pretrain.steps or config.warmup.enabled):
        raise UserError(
            f"config.pretrain.perturbation={config.pretrain.perturbation:g} has no effect with "
            "config.pretrain.steps=0; give config.pretrain.perturbation=0 or more steps."
        )


def check_against_classes(config: ConfigDict, n_classes: int, n_semantics: int, with_images: int) -> None:
    """Checks what depends on the declared classes of the sensitive and the public set.

    Args:
      config: whose settings are checked.
      n_classes: of the sensitive set.
      n_semantics: classes of the public set.
      with_images: how many of these have images; no other is picked.

    Raises:
      TooFewSemantics: if not each class can have one of its own.
      UserError: if k1 or k2 asks for more semantics than there are, or the class weights do not fit.
    """
    weights = config.sample.class_weights
    if weights and len(weights) != n_classes:
        raise UserError(
            f"config.sample.class_weights has {len(weights)} values for {n_classes} classes; give one per class or ()."
        )
    if not picks_semantics(config):
        return
    picks, most = k2(config, n_classes, n_semantics), with_images // n_classes
    if not most:
        raise TooFewSemantics(
            f"the public set has {with_images} classes for {n_classes} sensitive ones, and each of these needs one of "
            "its own; choose a public set with more classes or config.selection.method=unlabelled."
        )
    if config.selection.ratio and picks < 1:
        raise UserError(
            f"config.selection.ratio={config.selection.ratio} of {n_semantics} public classes leaves none for each of "
            f"{n_classes} classes; give at least {math.ceil(1000 * n_classes / n_semantics) / 1000}."
        )
    if picks > most:
        raise UserError(
            f"config.selection.k2={picks} semantics for each of {n_classes} classes need {picks * n_classes} "
            f"public classes, but the public set has {with_images} with images; give a k2 of at most {most}."
        )
    if config.selection.method == "semantic" and config.query.k1 > n_semantics:
        raise UserError(
            f"config.query.k1={config.query.k1} is larger than the {n_semantics} public classes; give less."
        )


def _floor(value: float) -> int:
    """Rounded down, but for what floating-point products lose: 0.57 * 100 is 56.99999999999999."""
    return math.floor(round(value, 6))
