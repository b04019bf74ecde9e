"""Poisson sampling: its law, its independence across steps, and how members are found and shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privimage_jax.privacy import chacha, sampling

KEY = chacha.key_from_seed(11)


def draw(n, batch_size, steps, key=KEY):
    """bool [steps, n]."""
    limit = sampling.threshold(batch_size, n)
    return np.asarray(jax.jit(jax.vmap(lambda t: sampling.membership(key, t, n, limit)))(jnp.arange(steps)))


def test_threshold_is_exact():
    assert sampling.threshold(1, 3) == 2**32 // 3
    assert sampling.threshold(4096, 45000) == 4096 * 2**32 // 45000
    assert sampling.threshold(7, 7) == 2**32
    assert sampling.sampling_rate(sampling.threshold(7, 7)) == 1.0
    assert sampling.sampling_rate(sampling.threshold(1, 4)) == 0.25
    assert 0 <= 4096 / 45000 - sampling.sampling_rate(sampling.threshold(4096, 45000)) < 2**-32


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_impossible_batch_sizes(batch_size):
    with pytest.raises(ValueError, match="between 1 and the number of records, 10"):
        sampling.threshold(batch_size, 10)


def test_a_record_is_a_member_when_its_word_is_below_the_threshold():
    n, limit = 37, sampling.threshold(20, 37)
    members = np.asarray(sampling.membership(KEY, 5, n, limit))
    for i in range(n):
        word = int(chacha.words(KEY, chacha.DOMAIN_MEMBERSHIP, 5, 0, i // 2048 * 128 + i % 128)[i // 128 % 16])
        assert members[i] == (word < limit)


def test_full_batch_has_everyone():
    assert draw(33, 33, 4).all()


def test_batch_sizes_follow_the_binomial_law():
    n, batch_size, steps = 200, 12, 6000
    sizes = draw(n, batch_size, steps).sum(axis=1)
    law = stats.binom(n, sampling.sampling_rate(sampling.threshold(batch_size, n)))
    edges = np.arange(5, 21)
    observed = np.bincount(np.clip(sizes, 5, 20) - 5, minlength=16)
    expected = steps * np.concatenate([[law.cdf(5)], law.pmf(edges[1:-1]), [law.sf(19)]])
    assert stats.chisquare(observed, expected).pvalue > 1e-3


def test_steps_and_records_are_independent():
    n, steps, q = 64, 4096, 0.25
    members = draw(n, 16, steps).astype(float)
    # Every record has rate q; neighbours in time and in place are uncorrelated (z scores over all pairs).
    assert np.abs((members.mean(0) - q) / np.sqrt(q * (1 - q) / steps)).max() < 4.5
    centred = (members - q) / np.sqrt(q * (1 - q))
    for lagged in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1], centred[1:, 1:] * centred[:-1, :-1]):
        assert abs(lagged.mean() * np.sqrt(lagged.size)) < 4.5
    pairs = centred.T @ centred / np.sqrt(steps)
    assert np.abs(pairs[np.triu_indices(n, 1)]).max() < 5.5


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 5))
def test_every_member_is_found_exactly_once(members, n_devices, microbatch):
    members = np.array(members)
    cumulative, drawn = np.cumsum(members, dtype=np.int32), int(members.sum())
    found = []
    for device in range(n_devices):
        share = int(sampling.device_share(drawn, device, n_devices))
        assert share in (drawn // n_devices, -(-drawn // n_devices))
        for start in range(0, share, microbatch):
            local = start + np.arange(microbatch)
            ids = np.asarray(sampling.positions(jnp.asarray(cumulative), jnp.asarray(device + n_devices * local)))
            assert ids.max() < len(members)
            found += list(ids[local < share])
    assert sorted(found) == list(np.flatnonzero(members))
