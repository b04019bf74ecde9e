import numpy as np
import pytest

from privimage_jax.errors import UserError
from privimage_jax.metrics.features import Outputs
from privimage_jax.metrics.fid import fid, mean_and_covariance
from privimage_jax.metrics.fidelity import measure
from privimage_jax.metrics.inception_score import inception_score
from privimage_jax.metrics.real_features import RealFeatures

RNG = np.random.default_rng(0)


def drawn(n, shift=0.0):
    return (RNG.normal(size=(n, 6)) + shift).astype(np.float32)


def real(features):
    return RealFeatures(features, *mean_and_covariance(features))


def test_every_measure_says_which_set_is_better():
    train, test = drawn(40), drawn(30)
    good, bad = (measure(train, real(test), Outputs(drawn(20, shift)), 4, "query") for shift in (0, 3))
    assert set(good) == {"fid", "precision", "recall", "fld", "kid"}
    assert good["fid"] < bad["fid"] and good["kid"] < bad["kid"] and good["fld"] < bad["fld"]
    assert good["precision"] > bad["precision"] and good["recall"] > bad["recall"]


def test_fid_is_that_of_the_features_and_the_inception_score_that_of_the_logits():
    train, test, made = drawn(40), drawn(30), drawn(20)
    logits = 50 * np.eye(4, dtype=np.float32)[np.arange(20) % 4]
    results = measure(train, real(test), Outputs(made, logits), 4, "query")
    assert results["fid"] == pytest.approx(fid(test, made), rel=1e-6)
    assert results["inception_score"] == inception_score(logits)


def test_as_few_images_as_can_be():
    results = measure(drawn(2), real(drawn(2)), Outputs(drawn(2), drawn(2)), 4, "query")
    assert all(np.isfinite(value) for value in results.values()) and "inception_score" in results


def test_features_beyond_all_bounds():
    huge = (1e38 * drawn(20)).clip(-3e38, 3e38)
    with pytest.raises(UserError, match=r"mine gives features of up to .*e\+38, for which .*fld.* cannot be computed"):
        measure(drawn(40), real(drawn(30)), Outputs(huge), 4, "mine")
