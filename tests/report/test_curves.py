"""Curves: what a stage wrote is read back, damage is no curve, and an interruption changes nothing."""

import numpy as np
import pytest

from privimage_jax.report.curves import MAX_POINTS, Metric, coarse, figures, read_metrics
from privimage_jax.training.writers import MetricWriter


def as_lists(metric):
    return metric.steps.tolist(), metric.means.tolist()


def test_what_the_writer_wrote_is_read_back(tmp_path):
    with MetricWriter(tmp_path) as writer:
        writer.scalars(10, {"loss": 2.0})
        writer.scalars(20, {"loss": 1.0, "norm": float("nan")})
        writer.scalars(25, {"loss": 0.5, "norm": 3.0})
    found = read_metrics(tmp_path / "metrics.csv", every=10)
    assert as_lists(found["loss"]) == ([10, 20, 25], [2.0, 1.0, 0.5])
    assert as_lists(found["norm"]) == ([10, 20, 25], [3.0, 3.0, 3.0])


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"step,loss\n",
        b"step,loss\n10,x\n",
        b"step,loss\n10,1.0,2.0\n",
        b"step,loss\nten,1.0\n",
        b"step,loss\n20,1.0\n10,1.0\n",
        b"step,loss\n0,1.0\n",
        b"loss\n1.0\n",
        b"step,loss\n99999999999999999999,1.0\n",
        b'step,loss\n"10,1.0\n',
        b"\xff\xfe",
    ],
)
def test_a_missing_or_damaged_file_is_no_curve(tmp_path, content):
    path = tmp_path / "metrics.csv"
    if content is not None:
        path.write_bytes(content)
    assert read_metrics(path, every=10) == {}


def test_half_a_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,loss\n10,1.0\n20,0.")
    assert as_lists(read_metrics(path, every=10)["loss"]) == ([10], [1.0])


def test_an_interruption_changes_no_curve():
    whole = coarse(Metric(np.array([10, 20, 30]), np.array([3.0, 2.0, 1.0])), every=10)
    parted = coarse(Metric(np.array([10, 14, 20, 30]), np.array([3.0, 3.5, 1.0, 1.0])), every=10)  # 4 * 3.5 + 6 = 20
    assert as_lists(whole) == as_lists(parted) == ([10, 20, 30], [3.0, 2.0, 1.0])


def test_many_steps_make_few_points():
    steps = np.arange(10, 10_010, 10)
    metric = coarse(Metric(steps, steps.astype(float)), every=10)
    assert len(metric.steps) <= MAX_POINTS and metric.steps[-1] == 10_000
    assert metric.means[0] == pytest.approx(np.mean(steps[: metric.steps[0] // 10]))


def test_a_level_curve_and_no_curve_are_drawn():
    level = Metric(np.array([4]), np.array([5.0]))
    assert 'points="500,300"' in figures([("level", level, None), ("none", None, None)])
    assert figures([("none", None, None)]) == ""
