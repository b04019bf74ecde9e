"""Where the unit is a person: the whole path on neighbours with one null image in the place of 1, 7 or 500 images.

Record and replay as in test_release.py: the neighbour's run goes on with the outputs of the first run's mechanisms. So
their inputs may differ by the sensitivities that the ledger states, and the release by nothing. Whoever is struck out
keeps the number, but how many images there are in all is another. The counting network has near ties, which another
last bit of a logit would turn over.
"""

import io
import json

import numpy as np
import pytest
from audits import NULL_MARK, Programs, Trace, check_releases_are_equal, recorded, vector64
from pipelines import SIDE, release_bytes, run, tiny_config, write_npz
from small_models import use_small_models

from privimage_jax.privacy import chacha, people, sampling
from privimage_jax.stages import choose_sampler

STEPS, BATCH, CLIP_NORM, K1, MEANS = 4, 20, 1e-3, 2, 3
COUNTS = np.array([1, 7, 500, *([1, 2, 3] * 9)])  # images of each person
PEOPLE, CANDIDATES = len(COUNTS), (0.0, 1.0, 3.0)
OWNERS = np.random.default_rng(3).permutation(np.repeat(np.arange(PEOPLE), COUNTS))


def left_of(struck):
    """The rows of a neighbour: all of the others, and the first of the person who is struck out."""
    own = np.flatnonzero(struck == OWNERS)
    return np.delete(np.arange(len(OWNERS)), own[1:])


def make_config(folder, public, struck):
    arrays = dict(np.load(write_npz(folder / "drawn.npz", len(OWNERS), 3, seed=1)))
    arrays["train_labels"] = (OWNERS + np.arange(len(OWNERS)) % 5 // 4) % 3  # a person has images of two classes
    arrays |= {"train_names": np.char.add("Person-", np.char.zfill(OWNERS.astype(str), 3))}
    if struck is not None:
        arrays["train_images"][struck == OWNERS] = NULL_MARK
        left = left_of(struck)
        arrays |= {name: rows[left] for name, rows in arrays.items() if name.startswith("train_")}
    np.savez(folder / "sensitive.npz", **arrays)
    config = use_small_models(tiny_config(folder))
    config.privacy.unit, config.data.person = "person", "array:{split}_names"
    config.data.path, config.public.path = str(folder / "sensitive.npz"), str(public)
    config.data.accept = ("nearly_white", "constant")  # the null records
    config.query.k1, config.query_net.model = K1, "small_models:NearTies"
    for section in (config.class_histogram, config.sampler_choice, config.warmup):
        section.enabled, section.noise_multiplier = True, 10.0
    config.sampler_choice.candidates = CANDIDATES
    config.warmup.means, config.warmup.subset_size, config.warmup.steps = MEANS, BATCH, 2
    config.finetune.batch_size, config.finetune.steps = BATCH, STEPS
    config.clipping.norm = CLIP_NORM
    config.privacy.accountant = "rdp"
    config.evaluate.enabled, config.log.checkpoint_every = False, 100
    return config


def run_on(folder, public, struck=None, replay=None, programs=None):
    """The trace and the release of a run, of which a person may be struck out."""
    trace, null = Trace(), None if struck is None else np.flatnonzero(OWNERS[left_of(struck)] == struck)
    config = make_config(folder, public, struck)
    with recorded(trace, replay, null, programs):
        workdir = run(config, folder / "run")
    return trace, release_bytes(workdir)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    return write_npz(tmp_path_factory.mktemp("public") / "public.npz", 60, 6, seed=2)


@pytest.fixture(scope="module")
def programs():
    """Those of the first run, for the others that need not make their own."""
    return Programs()


@pytest.fixture(scope="module")
def original(public, programs, tmp_path_factory):
    return run_on(tmp_path_factory.mktemp("original"), public, programs=programs)


@pytest.fixture(scope="module", params=[0, 1, 2], ids=["1 image", "7 images", "500 images"])
def neighbour(request, original, programs, public, tmp_path_factory):
    """(the person that is struck out, trace, release)

    The run without most of the images makes its own programs, which shows that none holds data.
    """
    folder, kept = tmp_path_factory.mktemp("neighbour"), None if request.param == 2 else programs
    return request.param, *run_on(folder, public, request.param, original[0], kept)


def drawn(person, stage, steps):
    key = chacha.key_from_seed(f"7 {stage} 0")
    limit = sampling.threshold(BATCH, PEOPLE)
    return np.array([bool(sampling.membership(key, step, PEOPLE, limit)[person]) for step in range(steps)])


def test_no_mechanisms_input_moves_by_more_than_its_sensitivity_and_the_release_by_nothing(original, neighbour):
    (one, release), (person, two, other) = original, neighbour
    check_releases_are_equal(release, other)
    bounds = {
        "semantic query": K1**0.5,
        "class histogram": 1.0,
        "sampler choice": choose_sampler.margin_sensitivity(len(CANDIDATES)),
    }
    stated = {line["mechanism"]: line.get("l2_sensitivity") for _, line in one.lines if "epsilon" in line}
    for name, bound in bounds.items():
        moved = np.linalg.norm(two.counts[name] - one.counts[name]) / 2**people.BITS
        assert moved <= bound == stated[name], name
        assert moved > 0.3 or name == "sampler choice"
    bound = stated["noisy means"]
    means = np.linalg.norm((two.counts["noisy means"] - one.counts["noisy means"]).reshape(MEANS, -1), axis=1)
    assert bound == 255 * 2 * SIDE and (means / 2**people.BITS <= bound).all()
    assert ((means > 0) == drawn(person, "warmup", MEANS)).all()
    sums = [[vector64(trace.gradients[step]) * BATCH for step in range(STEPS)] for trace in (one, two)]
    moved = np.linalg.norm(np.subtract(*sums), axis=1)
    # Rounding of the noised sum, of values up to ten times the noise's standard deviation.
    assert (moved <= CLIP_NORM * (1 + 1e-3)).all()
    assert ((moved > 0.1 * CLIP_NORM) == drawn(person, "finetune", STEPS)).all()


def test_the_noise_is_as_large_as_the_ledger_says_in_the_units_of_the_counts(original):
    trace, release = original
    for name in ("semantic query", "class histogram"):
        (line,) = (line for _, line in trace.lines if line.get("mechanism") == name and "epsilon" in line)
        noise = (trace.noisy[name] - trace.counts[name]) / 2**people.BITS
        std = line["noise_multiplier"] * line["l2_sensitivity"]
        assert np.abs(noise).max() < 5 * std and (noise.size < 10 or noise.std() > 0.5 * std)
    counts = json.loads(release["class_histogram.json"])["counts"]
    assert counts == people.rounded(trace.noisy["class histogram"]).tolist()
    assert abs(trace.counts["class histogram"].sum() / 2**people.BITS - PEOPLE) < 1e-3, "each person counts as one"


def test_the_release_says_the_unit_and_no_name(original):
    trace, release = original
    terms = trace.lines[0][1]
    assert terms["unit"] == "person" and terms["n"] == PEOPLE and "one person (all images" in terms["adjacency"]
    steps = next(line for _, line in trace.lines if line["kind"] == "dp-sgd")
    assert steps["sampling_rate"] == sampling.poisson_rate(BATCH, PEOPLE)
    page = release["report.html"].decode()
    assert f"<dd>{PEOPLE}</dd><dt>sensitive people" in page and "array:{split}" not in page
    for spelling in ("utf-8", "utf-32-le"):  # as in text, and in NumPy's
        mark = "Person-".encode(spelling)
        assert [name for name, content in unpacked(release).items() if mark in content] == []
        assert mark in b"".join(unpacked({"an.npz": packed("Person-001")}).values()) or spelling == "utf-8"


def unpacked(release):
    """The files, and of those with arrays the bytes of each: what is deflated would hide what it holds."""
    found = dict(release)
    for name in [name for name in release if name.endswith(".npz")]:
        with np.load(io.BytesIO(release[name])) as arrays:
            found |= {f"{name}: {part}": arrays[part].tobytes() for part in arrays.files}
    return found


def packed(text):
    file = io.BytesIO()
    np.savez_compressed(file, names=np.array([text]))
    return file.getvalue()
