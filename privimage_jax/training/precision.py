"""The number format of a run (`config.precision`): of activations and of matrix products.

Parameters, norms, sums, optimizers and noise are float32 in any case. No privacy guarantee depends on the format: what
is clipped and summed are float32 gradients, however they came about (`privacy.clipping`).
"""

from privimage_jax.privacy.clipping import PRECISIONS

AUTO = "auto"
SETTINGS = (AUTO, *PRECISIONS)


def resolve(setting: str, platform: str) -> str:
    """The format that "auto" stands for: bfloat16 on accelerators, float32 on CPUs, which have no faster one.

    >>> resolve("auto", "tpu"), resolve("auto", "cpu"), resolve("tf32", "cuda")
    ('bfloat16', 'float32', 'tf32')

    Args:
      setting: of `SETTINGS`.
      platform: of the devices, as jax calls it: "cpu", "tpu", "gpu", "cuda" or "rocm".
    """
    if setting != AUTO:
        return setting
    return "float32" if platform == "cpu" else "bfloat16"


def activations(precision: str) -> str:
    """The dtype of activations, for models that have a field `dtype`."""
    return "bfloat16" if precision == "bfloat16" else "float32"
