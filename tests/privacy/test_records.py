"""Where records lie on the devices, and that they reach the one that processes them bit for bit."""

import dataclasses
import functools
import importlib.util
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import KEY, LOSS_KEY, NO_NOISE, OPTIONS, check_records_are_delivered, keep_gradient, members_of
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from privimage_jax.privacy import noise, records
from privimage_jax.privacy.dp_sgd import DPSGD, dp_step
from privimage_jax.training.mesh import make_mesh

COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(")


def mesh_of(n_devices):
    return make_mesh(jax.devices()[:n_devices])


@pytest.mark.parametrize("piece_bytes", [records.PIECE_BYTES, 1, 5 * records.ROW_MULTIPLE])
def test_records_are_delivered(monkeypatch, piece_bytes):
    monkeypatch.setattr(records, "PIECE_BYTES", piece_bytes)
    check_records_are_delivered()


def test_a_row_is_the_record_and_nothing_else():
    tree = {"image": np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), "label": np.array([3, -1], np.int64)}
    layout = records.Layout.of(tree)
    rows = layout.pack(tree)
    assert rows.shape == (2, layout.row_bytes) == (2, 128)
    assert rows[0, :20].tolist() == [*range(12), 3, 0, 0, 0, 1, 0, 0, 0] and not rows[:, 20:].any()
    assert rows[1, 12:20].tolist() == [255] * 4 + [2, 0, 0, 0]
    assert jax.jit(layout.ids)(np.concatenate([rows, 0 * rows])).tolist() == [0, 1, -1, -1]
    unpacked = jax.jit(layout.unpack)(rows)
    np.testing.assert_array_equal(unpacked["image"], tree["image"])
    np.testing.assert_array_equal(unpacked["label"], tree["label"])
    assert unpacked["label"].dtype == jnp.int32


@pytest.mark.parametrize("sharded", [False, True])
def test_shapes_are_those_of_the_placed_records(sharded):
    tree = {"image": np.zeros((11, 4, 4, 1), np.uint8), "label": np.zeros(11, np.int32)}
    placed = records.place(tree, mesh_of(8), sharded)
    promised = records.shapes(jax.eval_shape(lambda: jax.tree.map(jnp.asarray, tree)), mesh_of(8), sharded)
    assert (promised.n, promised.layout, promised.sharded) == (placed.n, placed.layout, placed.sharded)
    assert (promised.rows.shape, promised.rows.dtype) == (placed.rows.shape, placed.rows.dtype)
    assert promised.rows.sharding == placed.rows.sharding
    assert placed.rows.addressable_shards[0].data.shape == ((2 if sharded else 11), 128)


def test_arrays_of_different_lengths_are_refused():
    for tree in ({"x": np.zeros(3), "y": np.zeros(4)}, {"x": np.zeros((0, 2))}):
        with pytest.raises(ValueError, match="records"):
            records.place(tree, mesh_of(1))


def linear_loss(params, batch, keys):
    """Its gradient holds the record itself, and the record's own unit vector: a wrong or a missing one shows."""
    draws = jax.random.key_data(keys)[:, 1] * 2.0**-31 - 1
    seen = batch["image"].reshape(len(keys), -1).astype(jnp.float32)
    return seen @ params["w"] * (1 + batch["label"]) * draws + params["seen"][batch["id"]]


def step_of(settings, n_devices, added=NO_NOISE):
    return dp_step(linear_loss, keep_gradient, settings, mesh_of(n_devices), noise=added)


@functools.cache
def compiled(settings, n_devices):
    """A step on replicated records and the same one on sharded records, in one program."""
    step = step_of(settings, n_devices)

    def both(state, replicated, sharded, t):
        return step(state, replicated, KEY, LOSS_KEY, t), step(state, sharded, KEY, LOSS_KEY, t)

    return jax.jit(both, compiler_options=OPTIONS)


def tree_of(n):
    rng = np.random.default_rng(n)
    return {
        "image": rng.integers(0, 256, (n, 2, 2, 1)).astype(np.uint8),
        "label": rng.integers(0, 9, n).astype(np.int32),
        "id": np.arange(n, dtype=np.int32),
    }


def state_of(n):
    return {"params": {"w": np.zeros(4, np.float32), "seen": np.zeros(n, np.float32)}}


def outcomes(settings, n_devices, t):
    """(the gradient, figures) of a step on replicated records, and on sharded ones."""
    places = [records.place(tree_of(settings.n), mesh_of(n_devices), sharded) for sharded in (False, True)]
    results = jax.device_get(compiled(settings, n_devices)(state_of(settings.n), *places, t))
    return [(state["gradient"], stats) for state, stats in results]


@pytest.mark.parametrize(("n", "batch_size", "microbatch"), [(3, 1, 2), (17, 17, 3), (40, 5, 2)])
@pytest.mark.parametrize("n_devices", [1, 2, 8])
def test_a_step_is_the_same_wherever_the_records_lie(n, batch_size, microbatch, n_devices):
    """Small batches leave devices without a member, and some are empty; large ones take several rounds."""
    settings = DPSGD(n, batch_size, clip_norm=1e9, noise_multiplier=0.0, microbatch=microbatch)
    for t in range(6):
        replicated, sharded = outcomes(settings, n_devices, t)
        jax.tree.map(np.testing.assert_array_equal, sharded, replicated)
        alone = outcomes(settings, 1, t)[0]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-3), sharded, alone)
        members = members_of(t, settings)
        np.testing.assert_allclose(sharded[0]["seen"] * batch_size, members, rtol=1e-5)
        assert sharded[1]["processed"] == sharded[1]["drawn"] == members.sum()


def test_a_record_that_is_not_the_one_asked_for_is_not_processed(monkeypatch):
    """The count that every run asserts tells of it, whatever went wrong on the way."""
    rows = records.rows_of

    def spoilt(data, ids):
        return rows(data, jnp.where(ids % 5 == 0, ids + 1, ids))

    monkeypatch.setattr(records, "rows_of", spoilt)
    settings = DPSGD(n=40, batch_size=20, clip_norm=1e9, noise_multiplier=0.0, microbatch=5)
    state, data = state_of(40), records.place(tree_of(40), mesh_of(2), True)
    step = jax.jit(step_of(settings, 2), compiler_options=OPTIONS)
    state, stats = step(state, data, KEY, LOSS_KEY, 0)
    rest = members_of(0, settings) & (np.arange(40) % 5 > 0)
    assert stats["processed"] == rest.sum() < stats["drawn"]
    np.testing.assert_allclose(state["gradient"]["seen"] * settings.batch_size, rest, rtol=1e-5)


def test_an_empty_batch_of_sharded_records():
    settings = DPSGD(n=3, batch_size=1, clip_norm=1e9, noise_multiplier=0.0, microbatch=2)  # as above
    t = next(t for t in range(50) if not members_of(t, settings).any())
    gradient, stats = outcomes(settings, 8, t)[1]
    assert stats["drawn"] == stats["processed"] == 0 and not gradient["w"].any()


def test_the_collectives_of_a_step_on_sharded_records():
    """In the loop the ids and the rows are exchanged; after it all is summed once. Nothing gathers the set."""
    settings = DPSGD(n=40, batch_size=12, clip_norm=1.0, noise_multiplier=1.0, microbatch=3)
    data = records.place(tree_of(40), mesh_of(8), True)
    step = jax.jit(step_of(settings, 8, noise.INDEPENDENT), compiler_options=OPTIONS)
    text = step.lower(state_of(40), data, KEY, LOSS_KEY, 0).compile().as_text()
    entry = text[text.index("\nENTRY") :]
    assert COLLECTIVE.findall(entry) == ["all-reduce"]
    in_loop = [line for line in text[: text.index("\nENTRY")].splitlines() if COLLECTIVE.search(line)]
    assert [COLLECTIVE.search(line)[1] for line in in_loop] == ["all-gather", "reduce-scatter"]
    assert re.search(r"s32\[24\]", in_loop[0]) and re.search(r"u8\[3,128\]", in_loop[1])  # 8 x 3 ids, 3 rows each


@pytest.mark.parametrize("sharded", [False, True])
def test_a_public_batch_gathers_no_more_than_itself(sharded):
    data = records.place(tree_of(4000), mesh_of(8), sharded)
    program = jax.jit(functools.partial(records.batch, mesh=mesh_of(8))).lower(data, np.zeros(16, np.int32)).compile()
    text = program.as_text()
    assert sorted(COLLECTIVE.findall(text)) == (["all-gather", "reduce-scatter"] if sharded else [])
    assert re.findall(r"= s32\[16\]\S* all-gather", text) == (["= s32[16]{0} all-gather"] if sharded else [])
    assert program.memory_analysis().temp_size_in_bytes < 500 * 128  # less than a device's share of the set


def test_what_is_static_of_records_tells_programs_apart():
    one, two = (records.place(tree_of(5), mesh_of(2), sharded) for sharded in (False, True))
    assert jax.tree.structure(one) != jax.tree.structure(two)
    assert jax.tree.structure(one) == jax.tree.structure(dataclasses.replace(one, rows=0))


@pytest.fixture(scope="module")
def tpu():
    """A mesh of eight TPU chips that are not here: programs for them compile, but do not run."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu, the TPU's compiler, is not installed")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or it asks the network which machine this is
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    return Mesh(np.array(topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices), ("data",))


def linear_image_loss(params, batch, keys):
    images = batch["image"].reshape(len(keys), -1).astype(jnp.float32)
    return images @ params["w"] * batch["label"]


@pytest.mark.parametrize(
    ("how", "image_shape"),
    [
        ("as images", (28, 28, 1)),
        ("replicated", (32, 32, 3)),
        ("sharded", (28, 28, 1)),
        ("replicated", (28, 28, 1)),  # neither its bytes nor its sides suit a tile
    ],
)
def test_a_tpu_copies_no_image_set(tpu, how, image_shape):
    """Without records it does, in every step, as the first case shows."""
    n = 10_000
    everywhere = NamedSharding(tpu, PartitionSpec())

    def shaped(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=everywhere)

    tree = {"image": shaped((n, *image_shape), jnp.uint8), "label": shaped((n,), jnp.int32)}
    data = tree if how == "as images" else records.shapes(tree, tpu, how == "sharded")
    step = dp_step(linear_image_loss, keep_gradient, DPSGD(n, 100, 1.0, 0.0, 8), tpu, noise=NO_NOISE)
    state = {"params": {"w": shaped((np.prod(image_shape),), jnp.float32)}}
    loss_key = shaped((), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    program = jax.jit(step).lower(state, data, shaped((8,), jnp.uint32), loss_key, shaped((), jnp.int32)).compile()
    rows = n // tpu.size if how == "sharded" else n
    of_set = re.findall(rf" = u8\[{rows},[\d,]+\]\S* ([\w-]+)\(", program.as_text())
    assert "parameter" in of_set
    copies = set(of_set) - {"parameter", "get-tuple-element", "bitcast"}
    assert copies == ({"copy"} if how == "as images" else set())
