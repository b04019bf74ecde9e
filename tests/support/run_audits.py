"""What an auditor checks of a run's own stages, from the config to the release, beside what `audits` checks of a step.

Each check runs as few stages as it needs, on sixty images of 8x8 pixels. What it compares with is computed here from
the definition, from the ledger's line and from the key that was used, never by the code that is checked.
"""

import itertools
import json
import pathlib
import stat
from collections.abc import Callable
from typing import Any

import dp_accounting
import jax
import numpy as np
import pytest
from audits import (
    KEY,
    LOSS_KEY,
    NOISE,
    NULL_MARK,
    STATE,
    Trace,
    check_releases_are_equal,
    check_spent_before_use,
    linear_problem,
    linear_step,
    noise_of,
    recorded,
    vector64,
)
from dp_accounting import rdp
from kept import kept
from pipelines import CLASSES, release_bytes, tiny_config, write_npz
from small_models import SmallClassifier, use_small_gan, use_small_models

from privimage_jax import config as configs
from privimage_jax.data import loading
from privimage_jax.errors import UserError
from privimage_jax.metrics.features import extract, forward
from privimage_jax.models import gan, registry
from privimage_jax.privacy import chacha, dp_sgd, ledger, noise, sampling, verification
from privimage_jax.run import mechanism, stage
from privimage_jax.run.inputs import Inputs, make_inputs
from privimage_jax.run.plan import make_plan
from privimage_jax.stages import class_histogram, finetune, pretrain, query, report, sample, selection
from privimage_jax.storage import durable
from privimage_jax.storage.workdir import Workdir
from privimage_jax.training.mesh import make_mesh

N, BATCH, STEPS, CLIP_NORM, DRAWS = 60, 40, 2, 1e-3, 2
QUERY = chacha.DOMAIN_QUERY
ROW = 4  # of the record that neighbours differ in
_TURNS = itertools.count()
_FOUND: dict[Any, Any] = {}
Change = Callable[[dict[str, np.ndarray]], Any]


def inputs_of(
    folder: pathlib.Path,
    name: str = "run",
    change: Change = lambda arrays: None,
    adjust: Callable[[Any], Any] = lambda config: None,
    **settings: Any,
) -> Inputs:
    """The inputs of a run on the tiny set: `change` may alter its arrays, `adjust` the config; settings by "a__b"."""
    place = folder / name
    place.mkdir()
    arrays = dict(np.load(write_npz(place / "drawn.npz", N, CLASSES, seed=1)))
    change(arrays)
    np.savez(place / "data.npz", **arrays)
    config = use_small_models(tiny_config(place))
    config.privacy.accountant, config.evaluate.enabled = "rdp", False
    config.selection.method, config.pretrain.steps = "random", 0
    config.finetune.update(batch_size=BATCH, steps=STEPS, block=1, noise_multiplicity=DRAWS)
    config.clipping.norm = CLIP_NORM
    for key, value in settings.items():
        section, _, setting = key.partition("__")
        config[section][setting] = value
    adjust(config)
    inputs = make_inputs(configs.check(config), Workdir(place / "run"), make_mesh(jax.devices()[:1]))
    inputs.workdir.create()
    return inputs


def of(inputs: Inputs, module: Any) -> Inputs:
    """The inputs of a stage's module."""
    return inputs.of(module.STAGE, microbatch=8)


def fine_tune(inputs: Inputs) -> None:
    """Runs the stage on a generator that was not pre-trained.

    That its loss keeps examples apart is found once, as all audits have one model: `test_planted_bugs` tests how.
    """
    pretrain.run(of(inputs, pretrain))
    with pytest.MonkeyPatch.context() as patch:
        kept(patch, finetune.objective_check, "check_objective", results=_FOUND)
        finetune.run(of(inputs, finetune))


def fine_tuned(inputs: Inputs, replay: Trace | None = None) -> Trace:
    """The trace of `fine_tune`."""
    trace = Trace()
    with recorded(trace, replay):
        fine_tune(inputs)
    return trace


def make_null(arrays: dict[str, np.ndarray]) -> None:
    """Nothing but null records: no gradient at all."""
    arrays["train_images"][:] = NULL_MARK


def of_people(arrays: dict[str, np.ndarray]) -> None:
    """Two images of each person, all null."""
    make_null(arrays)
    arrays |= {name: np.repeat(arrays[name], 2, axis=0) for name in ("train_images", "train_labels")}
    arrays["train_names"] = np.repeat(np.arange(N), 2).astype(str)


def make_one_null(arrays: dict[str, np.ndarray]) -> None:
    """A null record in the place of one."""
    arrays["train_images"][ROW] = NULL_MARK


def make_other_held_out(arrays: dict[str, np.ndarray]) -> None:
    """The same training images beside other held-out ones."""
    arrays["test_images"][:] = 255 - arrays["test_images"]
    arrays["test_labels"][:] = arrays["test_labels"][::-1].copy()


_NEIGHBOURS = (("one", lambda arrays: None), ("other", make_one_null))


def check_fine_tuning(folder: pathlib.Path, **settings: Any) -> None:
    """Each step of the stage adds the noise of its ledger line, drawn under the run's key; q and N are the true ones.

    All records are null here, so that a gradient is noise and nothing else. `settings` go to `inputs_of`.
    """
    inputs = inputs_of(folder, **{"change": make_null, **settings})
    trace = fine_tuned(inputs)
    check_spent_before_use(trace)
    opened = trace.lines[0][1]
    assert opened["n"] == N, f"the ledger says N = {opened['n']}"
    lines = [line for _, line in trace.lines if line["kind"] == "dp-sgd"]
    blocks = np.concatenate(trace.blocks)
    assert sorted(t for line in lines for t in range(*line["steps"])) == sorted(trace.gradients) == list(range(STEPS))
    for line in lines:
        assert line["clip_norm"] == CLIP_NORM and line["expected_batch_size"] == BATCH, "the ledger has other settings"
        assert line["sampling_rate"] == (BATCH * 2**32 // N) / 2**32, f"the ledger says q = {line['sampling_rate']}"
        for t in range(*line["steps"]):
            (key,) = np.unique(blocks[(blocks[:, 8] == NOISE) & (blocks[:, 9] == t), :8], axis=0)
            std = line["noise_multiplier"] * line["clip_norm"]
            gradient = trace.gradients[t]
            added = BATCH * vector64(gradient) / std
            error = np.abs(added - noise_of(t, gradient, key)).max()
            assert error < 1e-4, f"the noise of step {t} is off by {error} sigma2 C of its ledger line"
    verification.verify(ledger.Ledger.open(inputs.workdir.ledger), finished=True)


def check_fine_tuning_of_people(folder: pathlib.Path) -> None:
    """The same where a record is a person."""
    check_fine_tuning(
        folder,
        change=of_people,
        privacy__unit="person",
        data__person="array:{split}_names",
        data__accept=("nearly_white", "constant"),
    )


def check_fine_tuning_of_a_gan(folder: pathlib.Path) -> None:
    """The same of a discriminator, of one block of either kind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gan, "LEAST_BLOCKS", 2)
        check_fine_tuning(folder, adjust=use_small_gan)


def check_fine_tuning_neighbours(folder: pathlib.Path) -> None:
    """With K = 2 draws a null record in the place of one moves a sum by C at most, and what is released by nothing."""
    one = inputs_of(folder, "one")
    other = inputs_of(folder, "other", make_one_null)
    original = fine_tuned(one)
    replayed = fine_tuned(other, original)
    moved = [
        BATCH * np.linalg.norm(vector64(replayed.gradients[t]) - vector64(original.gradients[t])) for t in range(STEPS)
    ]
    assert max(moved) > 0.5 * CLIP_NORM, "the record was never drawn"
    assert max(moved) <= CLIP_NORM * (1 + 1e-3), f"one record moves a sum by {max(moved) / CLIP_NORM} C"
    assert replayed.lines == original.lines, "the ledgers differ"
    check_releases_are_equal(release_bytes(one.workdir), release_bytes(other.workdir))


def check_held_out_images_stay_out(folder: pathlib.Path) -> None:
    """Other held-out images beside the same training images: the generator and the set are the same to the bit."""
    releases = []
    for name, change in (("one", lambda arrays: None), ("other", make_other_held_out)):
        inputs = inputs_of(folder, name, change)
        fine_tune(inputs)
        sample.run(of(inputs, sample))
        releases.append(release_bytes(inputs.workdir))
    assert {"generator/params.npz", "synthetic.npz"} <= releases[0].keys()
    check_releases_are_equal(*releases)


def _check_counts(trace: Trace, name: str, wanted: np.ndarray, sigma: float, sensitivity: float) -> None:
    line = next(line for _, line in trace.lines if line.get("mechanism") == name and "epsilon" in line)
    assert line["l2_sensitivity"] == sensitivity, f"the ledger says S = {line['l2_sensitivity']}, not {sensitivity}"
    assert line["noise_multiplier"] == sigma, f"the ledger says sigma = {line['noise_multiplier']}"
    assert (trace.counts[name] == wanted).all(), f"the {name} counts something else"
    assert trace.blocks, f"the {name} draws no noise"
    blocks = np.concatenate(trace.blocks)
    (key,) = np.unique(blocks[blocks[:, 8] == QUERY, :8], axis=0)
    words = np.asarray(chacha.words(key, QUERY, 0, 0, np.arange(-(-wanted.size // 8), dtype=np.uint32)))  # [16, blocks]
    four = words.T.reshape(-1, 4).T
    normal = np.stack(noise.standard_normal(*four, np, np.float64), axis=1).ravel()[: wanted.size]
    added = np.rint(sigma * sensitivity * normal).reshape(wanted.shape)
    assert (trace.noisy[name] - wanted == added).all(), f"what is added to the counts of the {name} is off"
    check_spent_before_use(trace)


def check_query(folder: pathlib.Path) -> None:
    """The stage counts the two strongest semantics, and adds the noise of its ledger line, sigma1 sqrt(2)."""
    inputs = inputs_of(folder, selection__method="semantic", query__k1=2)
    model = SmallClassifier(inputs.public.n_classes)
    variables = registry.init_classifier(model, jax.random.key(0), inputs.sensitive.image_shape)
    trace = Trace()
    with recorded(trace), pytest.MonkeyPatch.context() as patch:
        patch.setattr(query.train_query, "load", lambda _: (model, variables))
        query.run(of(inputs, query))
    logits = extract(forward(model, variables, method="__call__"), inputs.sensitive.images)
    wanted = np.zeros((CLASSES, inputs.public.n_classes), np.int64)
    for label, order in zip(inputs.sensitive.labels, np.argsort(logits, axis=1), strict=True):
        wanted[label, order[-2:]] += 1
    _check_counts(trace, "semantic query", wanted, inputs.config.query.noise_multiplier, 2**0.5)
    kept = query.load(of(inputs, query))
    assert (kept == trace.noisy["semantic query"]).all(), "what is kept is not the noisy counts"


def check_class_histogram(folder: pathlib.Path) -> None:
    """The stage counts each record once, adds the noise of its ledger line, and publishes that."""
    inputs = inputs_of(folder, class_histogram__enabled=True, class_histogram__noise_multiplier=10.0)
    trace = Trace()
    with recorded(trace):
        class_histogram.run(of(inputs, class_histogram))
    _check_counts(trace, "class histogram", np.full(CLASSES, N // CLASSES), 10.0, 1.0)
    published = json.loads(release_bytes(inputs.workdir)["class_histogram.json"])
    assert published["counts"] == trace.noisy["class histogram"].tolist(), "what is published is not the noisy counts"


def check_plan(folder: pathlib.Path) -> None:
    """The plan costs at most its budget, and nearly all of it, by dp-accounting and the definition of q alone."""
    config = inputs_of(folder, selection__method="semantic", class_histogram__enabled=True).config
    config.class_histogram.noise_multiplier = 10.0
    config.privacy.epsilon = 10 + next(_TURNS) / 1000  # a plan is solved once in a process
    plan = make_plan(config, N)
    counter = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_SPECIAL)
    for sigma in (config.query.noise_multiplier, config.class_histogram.noise_multiplier):
        counter.compose(dp_accounting.GaussianDpEvent(sigma))
    step = dp_accounting.GaussianDpEvent(plan.noise_multiplier)
    counter.compose(dp_accounting.PoissonSampledDpEvent((BATCH * 2**32 // N) / 2**32, step), config.finetune.steps)
    assert plan.delta <= N**-1.5, f"delta is {plan.delta}: N delta is {N * plan.delta}"
    spent, budget = counter.get_epsilon(plan.delta), config.privacy.epsilon
    assert 0.99 * budget < spent <= budget * (1 + 1e-9), f"the plan costs epsilon {spent}, and its budget is {budget}"


def check_lost_keys(folder: pathlib.Path) -> None:
    """Steps under a lost key are spent: fewer are left, and those that follow count beside them."""
    line = {"kind": "dp-sgd", "mechanism": "DP-SGD fine-tuning", "noise_multiplier": 1.0, "sampling_rate": 0.5}
    lines = [{**line, "key_generation": 0, "steps": [0, 4]}]
    step_range = finetune.next_step_range(lines, 2, 10, lambda generation: False)
    assert step_range == finetune.StepRange(1, 2, 2, 8), f"after the loss of a key go on with {step_range}"
    under_two = [*lines, {**line, "key_generation": 1, "steps": [2, 6]}]
    (spent,) = ledger.spent(under_two)
    assert spent["steps"] == 8, f"steps under two keys count as {spent['steps']}, not 8"


def refused(act: Callable[[], Any], says: str) -> None:
    """`act` ends in a sentence that says so."""
    try:
        act()
    except UserError as error:
        assert says in str(error), f"refused, but for another reason: {error}"
    else:
        raise AssertionError(f"not refused: {says}")


def check_keys(folder: pathlib.Path) -> None:
    """A key of entropy for every mechanism, run and generation, its owner's alone; gone when the mechanism closes."""
    one, other = (inputs_of(folder, name, selection__method="semantic", privacy__fixed_seed=-1) for name in "ab")
    begun = [mechanism.Mechanism(of(*where)) for where in ((one, query), (other, query), (one, finetune))]
    for own in begun:
        own.check_inputs(data="a")
    keys, first = [own.key(0) for own in begun], begun[0]
    first.spend("gaussian", noise_multiplier=5.0, l2_sensitivity=1.0, key_generation=0)
    assert (first.key(0) == keys[0]).all(), "a replay has another key"
    keys.append(first.key(1))
    assert len({key.tobytes() for key in keys}) == len(keys), "two mechanisms, runs or generations share a key"
    paths = list((one.workdir.internal / "keys").iterdir())
    modes = {stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert modes == {0o600}, f"keys have the modes {modes}"
    first.close()
    left = [path.name for path in (one.workdir.internal / "keys").iterdir() if path.name.startswith("query")]
    assert not left, f"the keys {left} are still there"


def check_refusals(folder: pathlib.Path) -> None:
    """What a spent mechanism, a full budget and a shortened ledger refuse."""
    inputs = inputs_of(folder, selection__method="semantic", privacy__fixed_seed=-1)
    own = mechanism.Mechanism(of(inputs, query))
    own.check_inputs(data="a")
    own.key(0)
    own.spend("gaussian", noise_multiplier=5.0, l2_sensitivity=1.0, key_generation=0)
    refused(lambda: own.check_inputs(data="b"), "has spent budget on other inputs (changed: data)")
    for _ in range(60):
        try:
            own.spend("gaussian", noise_multiplier=1.0, l2_sensitivity=1.0, key_generation=0)
        except UserError as error:
            assert "its budget is spent" in str(error)
            break
    written = mechanism.open_ledger(inputs.workdir)
    verification.verify(written, finished=False)
    spent = ledger.total_epsilon(written.entries)
    assert spent <= inputs.config.privacy.epsilon, f"epsilon {spent} was spent of {inputs.config.privacy.epsilon}"
    steps = {"sampling_rate": 0.5, "clip_norm": 1.0, "key_generation": 0}
    book = ledger.Ledger.open(folder / "ledger.jsonl")
    book.append("open", **mechanism.terms(inputs))
    book.append("dp-sgd", mechanism="DP-SGD fine-tuning", epsilon=1.0, steps=[0, 2], noise_multiplier=2.0, **steps)
    more = {"mechanism": "DP-SGD fine-tuning", "epsilon": 2.0, "steps": [2, 4], "noise_multiplier": 3.0}
    refused(lambda: book.append("dp-sgd", **more, **steps), "cannot go on with 3")
    path = inputs.workdir.ledger
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    refused(lambda: mechanism.open_ledger(inputs.workdir), "has lost lines that spent budget")


def check_selection(folder: pathlib.Path) -> None:
    """Which semantics are picked follows from the noisy counts alone, whatever the exact ones are."""
    releases = []
    for name in ("one", "other"):
        inputs = inputs_of(folder, name, selection__method="semantic")
        shape = (CLASSES, inputs.public.n_classes)
        own = mechanism.Mechanism(of(inputs, query))
        own.check_inputs(data="a")
        own.key(0)
        own.spend("gaussian", noise_multiplier=5.0, l2_sensitivity=1.0, key_generation=0)
        noisy, exact = np.random.default_rng(0).integers(0, 9, shape), np.eye(*shape, k=int(name == "other"), dtype=int)
        inputs.folder("query")
        durable.atomic_write_json(query.STAGE.artefact(inputs.workdir), {"histogram": noisy.tolist(), "k1": 1})
        durable.atomic_write_json(query.STAGE.note(inputs.workdir), {"exact": exact.tolist()})
        inputs.folder("select")
        selection.run(of(inputs, selection))
        releases.append(release_bytes(inputs.workdir))
    check_releases_are_equal(*releases)


def check_order(folder: pathlib.Path) -> None:
    """All is published before a stage looks at sensitive images without noise, and such a stage publishes nothing."""
    looking = next(number for number, one in enumerate(stage.STAGES) if one.sees_without_noise)
    late = [one.name for one in stage.STAGES[looking:] if one.published]
    assert not late, f"{', '.join(late)} publishes once images were looked at without noise"


def check_description(folder: pathlib.Path) -> None:
    """What goes with the released parameters does not depend on the images."""
    one, other = (finetune.describe(of(inputs_of(folder, name, change), finetune)) for name, change in _NEIGHBOURS)
    assert one == other, f"the generator is described as {one} and, beside other images, as {other}"


def check_no_path_is_shown(folder: pathlib.Path) -> None:
    """Neither the report's settings nor the generator's description tell where data lie."""
    inputs = inputs_of(folder)
    shown = [report.STAGE.settings(inputs.config), finetune.describe(of(inputs, finetune))]
    assert str(folder) not in repr(shown), "a path of the sensitive images is shown"


def check_images_apart(folder: pathlib.Path) -> None:
    """N, the classes and every other image's pixels stay what they are when one image is another."""

    def brighten(arrays):
        arrays["train_images"][ROW] = 255
        arrays["train_labels"][arrays["train_labels"] == 2] = 0  # a class without images

    def repeat(arrays):
        arrays["train_images"][ROW] = arrays["train_images"][ROW + 1]

    sets = [inputs_of(folder, str(i), change).sensitive for i, change in enumerate((lambda _: 0, brighten, repeat))]
    for other in sets[1:]:
        assert (other.n, other.class_names) == (N, sets[0].class_names), "N or the classes depend on the images"
        same = (np.asarray(other.images) == np.asarray(sets[0].images)).all(axis=(1, 2, 3))
        assert np.delete(same, ROW).all(), "an image's pixels depend on another image"


def check_parts_apart(folder: pathlib.Path) -> None:
    """No image is in two parts, and each is in one, where this program divides a set."""
    section = inputs_of(folder).config.data
    for divided, share in ((False, 0.0), (True, 0.25), (False, 0.25)):
        section.validation_fraction, section.test_fraction = share, 0.2
        settings = loading.Settings.from_section(section, "config.data")
        train, held_out = (loading.choose(settings, 50, divided, part) for part in ("train", "test"))
        assert not set(train) & set(held_out), "an image is in two parts"
        if not (divided or share) or (divided and share):
            assert len(train) + len(held_out) == 50, "an image is in no part"


def check_empty_batch(folder: pathlib.Path) -> None:
    """A step whose batch has no members adds its noise all the same."""
    settings = dp_sgd.DPSGD(n=53, batch_size=1, clip_norm=0.5, noise_multiplier=1.5, microbatch=2)
    limit = 2**32 // 53
    empty = next(t for t in range(50) if not np.asarray(sampling.membership(KEY, t, 53, limit)).any())
    state, stats = linear_step(1, settings)(STATE, linear_problem(53, 4)[1], KEY, LOSS_KEY, empty)
    assert int(stats["drawn"]) == 0
    error = np.abs(vector64(state["gradient"]) - 0.75 * noise_of(empty, STATE["params"])).max()
    assert error < 1e-5, f"the gradient of an empty batch is off by {error}"


def check_law_of_noise(folder: pathlib.Path) -> None:
    """40,000 values: variance, fourth moment and reach of the normal law."""
    tree = {"a": jax.ShapeDtypeStruct((40_000,), np.float32)}
    rounded = noise.rounded_gaussian(KEY, (40_000,), 1000.0) / 1000
    for name, values in (("rounded", rounded), ("gaussian", np.asarray(noise.gaussian(KEY, 0, tree, 1.0)["a"]))):
        moments = (np.std(values), np.mean(values**4), np.abs(values).max())
        normal = abs(moments[0] - 1) < 0.015 and abs(moments[1] - 3) < 0.15 and 3.7 < moments[2] < 6
        assert normal, f"{name} noise has the moments {moments}"
