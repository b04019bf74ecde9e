"""People as records: who is drawn, which of their images, what they add, and what it moves when one is struck out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import KEY, LOSS_KEY, OPTIONS, clip64, keep_gradient, members_of, vector64

from privimage_jax.privacy import people, records
from privimage_jax.privacy.dp_sgd import DPSGD, dp_step
from privimage_jax.training.mesh import make_mesh, place, replicated

COUNTS = (1, 7, 500, 2, 1, 3, 30, 1)  # images of each person
OWNERS = np.random.default_rng(0).permutation(np.repeat(np.arange(len(COUNTS)), COUNTS)).astype(np.int32)
P, DRAWS, D = len(COUNTS), 4, 5
SETTINGS = DPSGD(n=P, batch_size=6, clip_norm=0.5, noise_multiplier=0.0, microbatch=3)
PARAMS = {"w": np.linspace(-1, 1, D, dtype=np.float32)}


def features(seed=1):
    """Of each image: large, so that every gradient is clipped."""
    return np.random.default_rng(seed).normal(size=(len(OWNERS), D)).astype(np.float32) * 20


def loss(params, batch, keys):
    """The mean over the K draws of half a squared product: its gradient is the mean of (x w) x."""
    x = batch["x"] if batch["x"].ndim == 3 else batch["x"][:, None]
    return jnp.mean(0.5 * (x @ params["w"]) ** 2, axis=1)


def placed(tree, mesh, sharded=False, draws=DRAWS, owners=OWNERS):
    rows, first = people.order(owners)
    laid = records.place(jax.tree.map(lambda leaf: leaf[rows], tree), mesh, sharded)
    return people.People(laid, place(first, replicated(mesh)), draws)


def compiled(n_devices, settings=SETTINGS, own_loss=loss):
    mesh = make_mesh(jax.devices()[:n_devices])
    return mesh, jax.jit(dp_step(own_loss, keep_gradient, settings, mesh), compiler_options=OPTIONS)


def drawn_images(t, draws=DRAWS):
    """The images [P, K] that each person's draws take at step t, by the definition."""
    step_key, chosen = jax.random.fold_in(LOSS_KEY, t), []
    for person in range(P):
        key = jax.random.fold_in(jax.random.fold_in(step_key, person), 0x50454F50)
        numbers = [int(jax.random.randint(jax.random.fold_in(key, k), (), 0, COUNTS[person])) for k in range(draws)]
        chosen.append(np.flatnonzero(person == OWNERS)[numbers])
    return np.array(chosen)


def gradients64(x):
    """float64 [P, D] of the loss of people whose drawn features are [P, K, D]."""
    x = x.astype(np.float64)
    return np.mean((x @ PARAMS["w"].astype(np.float64))[..., None] * x, axis=1)


@pytest.mark.parametrize(("n_devices", "sharded"), [(1, False), (8, False), (8, True)])
def test_a_step_is_its_definition(n_devices, sharded):
    """Members are people; each adds one clipped gradient of K of the own images, whatever the devices."""
    mesh, step = compiled(n_devices)
    data = placed({"x": features()}, mesh, sharded)
    for t in (0, 3):
        state, stats = step({"params": PARAMS}, data, KEY, LOSS_KEY, t)
        members = members_of(t, SETTINGS)
        wanted = clip64(gradients64(features()[drawn_images(t)]), SETTINGS.clip_norm)[members].sum(0)
        np.testing.assert_allclose(vector64(state["gradient"]) * SETTINGS.batch_size, wanted, rtol=1e-4, atol=1e-5)
        assert stats["processed"] == stats["drawn"] == members.sum() > 0


@pytest.mark.parametrize("person", [0, 1, 2], ids=["1 image", "7 images", "500 images"])
def test_striking_a_person_out_moves_the_sum_by_the_clip_norm_at_most(person):
    """All images of one become null, with a gradient of zero; exchanged, they move it by twice as much at most."""
    mesh, step = compiled(2)
    others = features()
    others[person == OWNERS] = 0
    exchanged = np.where((person == OWNERS)[:, None], features(2), features())
    for t in range(4):
        is_member = members_of(t, SETTINGS)[person]
        sums = [
            vector64(step({"params": PARAMS}, placed({"x": x}, mesh), KEY, LOSS_KEY, t)[0]["gradient"]) * 6
            for x in (features(), others, exchanged)
        ]
        struck, swapped = np.linalg.norm(sums[0] - sums[1]), np.linalg.norm(sums[0] - sums[2])
        assert struck <= SETTINGS.clip_norm * (1 + 1e-6) and swapped <= 2 * SETTINGS.clip_norm * (1 + 1e-6)
        assert (struck > 0.99 * SETTINGS.clip_norm) == is_member, "every gradient is clipped: it moves by all of C"


def test_images_of_nan_make_their_person_count_as_zero_and_nobody_else():
    mesh, step = compiled(2)
    x = features()
    x[OWNERS == 1] = np.nan
    t = next(t for t in range(20) if members_of(t, SETTINGS)[1])
    state, stats = step({"params": PARAMS}, placed({"x": x}, mesh), KEY, LOSS_KEY, t)
    x[OWNERS == 1] = 0
    without, _ = step({"params": PARAMS}, placed({"x": x}, mesh), KEY, LOSS_KEY, t)
    np.testing.assert_array_equal(state["gradient"]["w"], without["gradient"]["w"])
    assert stats["nonfinite"] == 1


def test_each_draw_takes_one_of_the_persons_own_images_and_all_of_them_in_time():
    """The loss is handed ids: K a person, never another's, uniformly."""
    full = dataclasses.replace(SETTINGS, batch_size=P)

    def loss_of_ids(params, batch, keys):
        return jnp.sum(jnp.take(params["seen"], batch["id"]), axis=1)

    mesh, step = compiled(2, dataclasses.replace(full, clip_norm=1e6), loss_of_ids)
    data = placed({"id": np.arange(len(OWNERS), dtype=np.int32)}, mesh)
    params = {"seen": np.zeros(len(OWNERS), np.float32)}
    seen = sum(np.asarray(step({"params": params}, data, KEY, LOSS_KEY, t)[0]["gradient"]["seen"]) for t in range(60))
    times = np.rint(seen * P).astype(int)
    assert [times[person == OWNERS].sum() for person in range(P)] == [60 * DRAWS] * P
    own = times[OWNERS == 1]  # 240 draws among 7 images: 34 each
    assert own.min() > 15 and own.max() < 60


def test_one_draw_makes_a_batch_like_any_other():
    """So that a loss which knows nothing of people takes one image of each."""
    shapes = []

    def noting(params, batch, keys):
        shapes.append(batch["x"].shape)
        return loss(params, batch, keys)

    mesh, step = compiled(1, own_loss=noting)
    step({"params": PARAMS}, placed({"x": features()}, mesh, draws=1), KEY, LOSS_KEY, 0)
    assert {shape[1:] for shape in shapes} == {(D,)}


def test_settings_count_people():
    mesh, step = compiled(1, dataclasses.replace(SETTINGS, n=len(OWNERS)))
    with pytest.raises(ValueError, match=f"settings.n is {len(OWNERS)}, but the data has {P} records"):
        step({"params": PARAMS}, placed({"x": features()}, mesh), KEY, LOSS_KEY, 0)


def test_a_person_without_an_image_is_refused():
    """A draw among none would take another's."""
    for owners in ([0, 2], []):
        with pytest.raises(ValueError, match="everybody needs an image"):
            people.order(np.array(owners, np.int32))


def test_what_is_compiled_does_not_depend_on_how_many_images_anybody_has():
    """Only values do, which are arguments. How many images there are in all is in the shapes."""
    mesh, step = compiled(2)

    def program(owners):
        data = placed({"x": features()[: len(owners)]}, mesh, owners=owners)
        return step.lower({"params": PARAMS}, data, KEY, LOSS_KEY, 0).as_text()

    alike = np.arange(len(OWNERS), dtype=np.int32) % P
    assert program(OWNERS) == program(alike) != program(alike[:-1])


def test_the_images_of_a_person_weigh_one_at_most_and_hardly_less():
    together = np.bincount(OWNERS, people.weights(OWNERS)) / 2**people.BITS
    assert together.max() <= 1 and together.min() > 1 - 500 / 2**people.BITS


def test_rounded_counts_are_the_nearest_whole_numbers():
    values = np.random.default_rng(0).normal(size=1000) * 100
    fixed = np.rint(values * 2**people.BITS).astype(np.int64)
    np.testing.assert_array_equal(people.rounded(fixed), np.floor(fixed / 2**people.BITS + 0.5))
