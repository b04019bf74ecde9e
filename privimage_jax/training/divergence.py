"""Trainings that went wrong: how that is known, of public ones and of fine-tuning.

A public training is stopped where its loss is not finite, and its result is refused where it is worse than nothing. A
training on sensitive images is never stopped: that would be a decision made by un-noised losses. It is watched, and
what is seen is told to the operator alone. Both look at the metrics that the loop has fetched anyway.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from privimage_jax.errors import UserError
from privimage_jax.training.writers import first_row

FACTOR = 2.0  # a loss above so many times that of knowing nothing has diverged; a training that works is below that one
RISEN = 10.0  # times its start, above which a loss is told: noise may double the small one of a pre-trained generator
NOT_FINITE = 0.5  # the share of gradients that are not finite above which the parameters are to blame, not the images

After = Callable[[int, int, dict[str, float]], None]


def all_finite(tree: Any) -> bool:
    """Whether every number of a tree of arrays is finite.

    >>> all_finite({"kernel": np.ones(3), "step": 7}), all_finite({"kernel": np.array([1, np.inf])})
    (True, False)
    """
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def refuse_not_finite(path: Path, tree: Any, is_spent_on: bool) -> Any:
    """The tree that was read from an artefact, if every number of it is finite: no mechanism sees another.

    Args:
      path: of the artefact.
      tree: its content.
      is_spent_on: whether budget was spent on it, so that no other may take its place.

    Raises:
      UserError: naming the artefact.
    """
    if all_finite(tree):
        return tree
    if is_spent_on:
        remedy = "budget was spent on it: restore it from a copy, or start a new workdir"
    else:
        remedy = "delete it, and the same command trains it again"
    raise UserError(f"{path} holds a number that is not finite; {remedy}.")


def has_diverged(loss: float, reference: float) -> bool:
    """Whether a loss is not finite, or above `FACTOR` times a reference. One that is not above 0 is no measure.

    >>> has_diverged(0.3, 1.0), has_diverged(2.1, 1.0), has_diverged(float("nan"), 1.0)
    (False, True, True)

    Args:
      loss: of a trained network.
      reference: of one that knows nothing.
    """
    return not math.isfinite(loss) or loss > FACTOR * reference > 0


def stop_if_not_finite(stage: str, remedy: str) -> After:
    """For `loop.train(after=…)` of a public training: ends it where a metric is not finite.

    Args:
      stage: its name.
      remedy: the setting to change, with what to do, as the end of a sentence.
    """

    def check(begin: int, end: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise UserError(f"the {name} of {stage} is {value:g} in the steps {begin} to {end}; {remedy}.")

    return check


class Watch:
    """Follows a training that goes on whatever happens.

    Args:
      metrics: the file of its metrics, whose first row has the loss of the first step; missing before that step.
      tell: called as tell(kind, sentence) at every pause at which something is wrong.
    """

    def __init__(self, metrics: Path, tell: Callable[[str, str], None]):
        self._tell = tell
        self._start = _known_loss(first_row(metrics))

    def __call__(self, begin: int, end: int, metrics: dict[str, float]) -> None:
        """Looks at the means of the steps [begin, end), for `loop.train(after=…)`."""
        steps, loss = f"in the steps {begin} to {end}", _known_loss(metrics)
        if self._start is None:
            self._start = loss
        if metrics["nonfinite"] > NOT_FINITE * metrics["drawn"]:
            share = metrics["nonfinite"] / metrics["drawn"]
            self._tell("gradients", f"{share:.0%} of the gradients are not finite and count as zero {steps}")
        elif loss is not None and not math.isfinite(loss):
            self._tell("loss", f"the loss is {loss:g} {steps}")
        elif loss is not None and self._start is not None and loss > RISEN * self._start > 0:
            times = loss / self._start
            self._tell("loss", f"the loss has risen to {times:.3g} times that of the start ({self._start:.3g}) {steps}")


def _known_loss(metrics: dict[str, float]) -> float | None:
    """The mean loss over a batch; None of one that is empty or has no finite gradient, whose mean is 0."""
    used = metrics.get("drawn", 0.0) - metrics.get("nonfinite", 0.0)
    return metrics.get("loss") if used > 0 else None
