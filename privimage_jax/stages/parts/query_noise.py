"""What the noise of the semantic query has changed: counts and picks with it and without. Not private."""

import numpy as np

from privimage_jax.report.query_noise import NoiseOfQuery
from privimage_jax.run.inputs import Inputs
from privimage_jax.settings import derived
from privimage_jax.stages import query, selection


def compare(inputs: Inputs) -> NoiseOfQuery | None:
    """The counts and picks of a run; None where it made no query, or has not kept the exact counts.

    Raises:
      UserError: if the counts are damaged.
    """
    exact = query.load_exact(inputs) if query.STAGE.enabled(inputs.config) else None
    if exact is None:
        return None
    public, noisy = inputs.public, query.load(inputs)
    k2 = derived.k2(inputs.config, *exact.shape)
    picked, without = (
        selection.pick(counts, k2, inputs.config.selection.assignment, np.unique(public.labels))
        for counts in (noisy, exact)
    )
    return NoiseOfQuery(
        class_names=inputs.sensitive.class_names,
        semantic_names=public.class_names,
        exact=exact,
        noisy=noisy,
        picked=picked,
        picked_from_exact=without,
        noise_std=query.noise_std(inputs),
    )
