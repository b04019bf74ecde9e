"""Whether a network that measures fidelity sees what the real images show, and what is told where it does not."""

import numpy as np
import pytest

from privimage_jax.stages.parts import seen_classes

LABELS = np.arange(60) % 3
SEES = np.eye(3)[LABELS] + 0.01 * np.random.default_rng(0).standard_normal((60, 3))


def test_features_that_show_the_class_tell_it_and_others_do_not():
    blind = np.random.default_rng(1).standard_normal((60, 3))
    assert seen_classes.nearest_class(SEES[:30], LABELS[:30], SEES[30:], LABELS[30:]) == 1
    assert seen_classes.nearest_class(blind[:30], LABELS[:30], blind[30:], LABELS[30:]) < 0.7
    constant = np.zeros((60, 3))
    assert seen_classes.nearest_class(constant[:30], LABELS[:30], constant[30:], LABELS[30:]) == pytest.approx(1 / 3)


def test_a_class_without_training_images_is_never_answered():
    assert seen_classes.nearest_class(SEES[LABELS > 0], LABELS[LABELS > 0], SEES, LABELS) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("seen", "learnt", "commonest", "is_told"),
    [
        (0.2, 0.9, 0.1, True),
        (0.49, 0.9, 0.1, True),
        (0.51, 0.9, 0.1, False),
        (0.1, 0.15, 0.1, False),  # the classifier learns nothing either
        (0.95, 0.96, 0.95, False),
    ],
)
def test_a_network_is_told_that_sees_less_than_half_of_what_can_be_learnt(seen, learnt, commonest, is_told):
    sentence = seen_classes.warning("letters", seen, learnt, commonest)
    assert bool(sentence) == is_told
    if is_told:
        assert f"{seen:.1%}" in sentence and f"{learnt:.1%}" in sentence and f"{commonest:.1%}" in sentence
        assert "config.evaluate.extractors" in sentence
