import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privimage_jax.errors import UserError
from privimage_jax.training import divergence

NUMBERS = st.floats(0, 1e6)


@given(NUMBERS, NUMBERS)
def test_a_loss_has_diverged_above_twice_its_reference(loss, reference):
    assert divergence.has_diverged(loss, reference) == (loss > 2 * reference > 0)
    assert not divergence.has_diverged(reference, reference)
    assert not divergence.has_diverged(loss, -reference), "a loss that may be negative is no measure"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_has_diverged(loss):
    assert divergence.has_diverged(loss, 1e30) and divergence.has_diverged(loss, math.inf)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_is_found(bad):
    leaf = jnp.ones((3, 2), jnp.bfloat16)
    assert divergence.all_finite({"a": [leaf, 3], "b": np.int32(2)})
    assert not divergence.all_finite({"a": [leaf.at[2, 1].set(bad), 3]})


def test_a_public_training_is_stopped_at_the_first_metric_that_is_not_finite():
    check = divergence.stop_if_not_finite("pretrain", "lower it")
    check(0, 50, {"loss": 1e30, "accuracy": 0.0})
    with pytest.raises(UserError, match=r"^the loss of pretrain is nan in the steps 50 to 100; lower it\.$"):
        check(50, 100, {"accuracy": 0.1, "loss": math.nan})


def metrics(loss, nonfinite=0, drawn=10):
    return {"loss": loss, "nonfinite": nonfinite, "drawn": drawn}


@pytest.fixture
def watch(tmp_path):
    """`watch()`: of a file beside which a run may have been interrupted; its kinds are kept."""
    kinds = []

    def make():
        return divergence.Watch(tmp_path / "metrics.csv", lambda kind, sentence: kinds.append((kind, sentence)))

    return make, kinds, tmp_path / "metrics.csv"


def test_a_loss_is_compared_with_that_of_the_first_step(watch):
    make, kinds, _ = watch
    follow = make()
    follow(0, 1, metrics(0.0, drawn=0))  # an empty batch has no loss
    for loss in (0.5, 1.01, 4.9):  # as a pre-trained generator's under noise
        follow(0, 1, metrics(loss))
    assert not kinds
    follow(0, 1, metrics(6.0))
    assert kinds == [("loss", "the loss has risen to 12 times that of the start (0.5) in the steps 0 to 1")]


@pytest.mark.parametrize(("start", "loss", "told"), [(-1.0, 50.0, False), (0.0, 5.0, False), (-1.0, math.inf, True)])
def test_a_loss_that_begins_at_or_below_0_is_told_only_if_it_is_not_finite(watch, start, loss, told):
    make, kinds, _ = watch
    follow = make()
    for value in (start, loss):
        follow(0, 1, metrics(value))
    assert [sentence for _, sentence in kinds] == [f"the loss is {loss:g} in the steps 0 to 1"] * told


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("step,loss,drawn\n1,0.5,9\n50,9,9\n", True),
        ("step,loss,drawn\n1,0.0,0\n", False),
        ("step,lo", False),
        ("\0", False),
    ],
)
def test_a_run_that_goes_on_remembers_the_first_step(watch, content, told):
    """Without its file, what comes first after the interruption stands in for it."""
    make, kinds, file = watch
    file.write_text(content)
    make()(50, 100, metrics(6.0))
    assert [kind for kind, _ in kinds] == ["loss"] * told


@given(st.integers(0, 10))
def test_gradients_that_are_not_finite_are_told_when_they_are_most(nonfinite):
    kinds = []
    divergence.Watch("nowhere", lambda kind, sentence: kinds.append(kind))(0, 1, metrics(0.0, nonfinite))
    assert kinds == ["gradients"] * (nonfinite > 5)


def test_an_artefact_that_is_not_finite_is_named():
    tree = {"a": np.ones(2)}
    for is_spent_on, remedy in ((False, "delete it, and"), (True, "budget was spent on it: restore it")):
        assert divergence.refuse_not_finite("internal/x", tree, is_spent_on) is tree
        with pytest.raises(UserError, match=f"^internal/x holds a number that is not finite; {remedy}"):
            divergence.refuse_not_finite("internal/x", {"a": np.array([1, math.nan])}, is_spent_on)
