"""Whether there are as many images and such classes as the plan needs."""

import math
from collections.abc import Iterator

import numpy as np
from ml_collections import ConfigDict

from privimage_jax.data.dataset import Dataset
from privimage_jax.data.inspection import findings
from privimage_jax.data.inspection.findings import Finding, some
from privimage_jax.settings import derived
from privimage_jax.settings.units import unit

LARGEST_CHANCE = 0.05  # N delta above which delta itself is a chance that people would not take
LARGEST_RATE = 0.5  # q = B / N above which drawing batches at random hides hardly any image


def of_sensitive(sensitive: Dataset, config: ConfigDict) -> Iterator[Finding]:
    """Too few records for the batches of DP-SGD or for delta, or too few images of a class for the query's noise."""
    batch_size, n, several = config.finetune.batch_size, sensitive.n_records, unit(config).several
    if config.finetune.enabled and LARGEST_RATE * n < batch_size <= n:
        seen = f"an expected batch of {batch_size:,} is more than half of the {n:,} sensitive {several}"
        remedy = f"lower config.finetune.batch_size or add {several}"
        yield Finding("few_images", f"{seen}, so that drawing it at random hides little; {remedy}.")
    chance = n * derived.delta(config, n)
    if chance > LARGEST_CHANCE:
        seen = (
            f"N delta is {math.ceil(100 * chance)}%, and a mechanism that hands out one random record with that chance"
        )
        yield Finding("delta", f"{seen} meets delta; give a smaller config.privacy.delta, or add {several}.")
    if config.selection.method != "semantic":
        return
    noise = config.query.noise_multiplier * config.query.k1**0.5
    counts = _counts(sensitive)
    if small := [
        f"{name} ({count:,})"
        for name, count in zip(sensitive.class_names, counts, strict=True)
        if 0 < count * config.query.k1 <= noise
    ]:
        seen = f"the query's noise of {noise:.3g} is as large as all counts of class {some(small)}"
        remedy = "lower config.query.noise_multiplier or add images"
        yield Finding("few_images", f"{seen}, so that its semantics are drawn blindly; {remedy}.")


def _counts(sensitive: Dataset) -> np.ndarray:
    """Images of each class, or people, who each count as shares of their images; rounded up."""
    owners = sensitive.owners
    weights = None if owners is None else 1 / np.bincount(owners)[owners]
    return np.ceil(np.bincount(sensitive.labels, weights, sensitive.n_classes)).astype(np.int64)


def of_semantics(public: Dataset, config: ConfigDict) -> Iterator[Finding]:
    """Public classes that mean nothing, where the plan picks some of them, or teaches them all."""
    if config.selection.method not in ("unlabelled", "none"):
        yield from findings.of_semantics(public, bool(config.public.class_names), config.selection.method)


def of_public(public: Dataset, config: ConfigDict) -> Iterator[Finding]:
    """Fewer public images than one batch of what they teach."""
    wanted = {
        "query_net": config.selection.method == "semantic" or config.evaluate.enabled,
        "pretrain": config.pretrain.steps > 0,
    }
    for section, learns in wanted.items():
        batch_size = config[section].batch_size
        if learns and public.n < batch_size:
            seen = f"the {public.n:,} public images are fewer than one batch, which repeats them"
            yield Finding("few_images", f"{seen}; lower config.{section}.batch_size={batch_size} or add images.")
